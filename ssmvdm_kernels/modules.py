"""The paper's "Mamba/Vim" mixer as a module on video tensors."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from . import mixing
from .project import project
from .validation import check_choice, check_like_parameters, check_size, check_tensor


class MambaMixer(nn.Module):
    """The mixer of `BidirectionalMamba` with one time direction or two; with one, only `causal` exists.

    Args:
        directions: 1, against the past only, or 2. All others are those of `BidirectionalMamba`.
    """

    def __init__(
        self,
        channels: int,
        states: int = 16,
        conv_width: int = 4,
        expand: int = 2,
        dt_rank: int | str = "auto",
        bias: bool = True,
        memory: str = "lean",
        directions: int = 2,
    ) -> None:
        super().__init__()
        caller = type(self).__name__
        check_choice(caller, "memory", memory, ("lean", "fast"))
        check_choice(caller, "directions", directions, (1, 2))
        check_size(caller, "channels", channels)
        check_size(caller, "states", states)
        check_size(caller, "conv_width", conv_width)
        check_size(caller, "expand", expand)
        inner = expand * channels
        if dt_rank == "auto":
            dt_rank = math.ceil(inner / 16)
        check_size(caller, "dt_rank", dt_rank)
        self.channels = channels
        self.inner = inner
        self.memory = memory
        self.in_proj = nn.Linear(channels, 2 * inner, bias=bias)
        self.causal = DirectionParameters(inner, states, conv_width, dt_rank)
        self.anticausal = DirectionParameters(inner, states, conv_width, dt_rank) if directions == 2 else None
        self.out_proj = nn.Linear(inner, channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        name = type(self).__name__
        check_tensor(name, "x", x)
        if x.dim() < 3 or x.shape[1] != self.channels:
            raise ValueError(
                f"{name}: x must have the shape (batch, {self.channels}, length, *lanes), but has {tuple(x.shape)}."
            )
        weight = self.in_proj.weight
        check_like_parameters(name, "x", x, weight)
        return self.finish(project(x, weight, self.in_proj.bias))

    def finish(self, xz: Tensor) -> Tensor:
        """All that follows W_in, for a caller that has multiplied with `in_proj` himself: xz = W_in x, (batch,
        2 inner, length, *lanes) -> (batch, channels, length, *lanes)."""
        name = type(self).__name__
        for place, module in self.named_modules():
            if hasattr(module, "base_layer"):  # as PEFT's wrappers of a layer have it
                raise TypeError(
                    f"{name}: {place} must be a plain layer, for its weight is read and what an adapter adds would be "
                    f"left out, but is a {type(module).__name__}."
                )
        directions = [own.tensors() for own in (self.causal, self.anticausal) if own is not None]
        arguments = (xz, directions, self.out_proj.weight, self.out_proj.bias)
        if self.memory == "fast" or not torch.is_grad_enabled() or mixing.is_transformed():
            return mixing.mix(*arguments)
        if mixing.can_be_lean(xz):
            return mixing.mix_lean(*arguments)
        # What the compiler and the reference backend can differentiate themselves: the same, with a second forward.
        return checkpoint(mixing.mix, *arguments, use_reentrant=False, preserve_rng_state=False)

    def extra_repr(self) -> str:
        states, width = self.causal.A_log.shape[1], self.causal.conv_weight.shape[1]
        return f"channels={self.channels}, states={states}, conv_width={width}, memory={self.memory!r}"


class BidirectionalMamba(MambaMixer):
    """Bidirectional Mamba mixer: W_in, convolution, selective scan, gate, W_out, over time and for every lane.

        (x', z) = W_in x                                                  each (batch, inner, length, *lanes)
        u_f, u_b = silu(causal_conv(x')), silu(anticausal_conv(x'))
        delta, B, C = projections of u, separately per direction
        out = W_out ((scan(u_f, ...) + reverse_scan(u_b, ...)) * silu(z))

    Input and output are (batch, channels, length, *lanes), whatever their strides; a video (b, c, f, h, w) is neither
    permuted nor copied. W_in, z and W_out are shared by the directions; each has its own convolution, projections, A
    and D, in `causal` and `anticausal`.

    Args:
        channels: width of input and output.
        states: size of the state per inner channel.
        conv_width: taps of the convolutions.
        expand: inner = expand * channels.
        dt_rank: rank of the projection to delta; "auto" is ceil(inner / 16).
        bias: whether W_in and W_out have a bias. The convolutions always have one.
        memory: "lean" saves only the input and the output of W_in for the backward pass and computes the rest again
            there, all but the scan; "fast" keeps what lies between. The numbers are the same, bit for bit.

    Parameters may be of any floating dtype; A, D and the biases of delta and of the convolutions enter the kernels in
    float32 (float64 for a float64 module).

    Raises:
        ValueError: a size below 1, an unknown `memory`; on call, an input of another shape than stated or on another
            device than the parameters.
        TypeError: on call, an input that is no dense tensor, or not of the dtype of the parameters (under autocast: of
            a floating dtype).

    Source: the bidirectional "Mamba/Vim" layer of Oshima et al., arXiv 2403.07711; Vim (arXiv 2401.09417) and Mamba
    (arXiv 2312.00752, section 3.4), whose initialisation it uses.
    """

    def __init__(
        self,
        channels: int,
        states: int = 16,
        conv_width: int = 4,
        expand: int = 2,
        dt_rank: int | str = "auto",
        bias: bool = True,
        memory: str = "lean",
    ) -> None:
        super().__init__(channels, states, conv_width, expand, dt_rank, bias, memory, directions=2)


class S6Parameters(nn.Module):
    """What one time direction of S6 owns: the projections of its input to delta, B and C, and A and D.

    Initialised as in Mamba: A = -(1..states), D = 1, W_dt uniform in +-rank^-1/2, and a bias that makes
    softplus(dt_bias) log-uniform in [1e-3, 1e-1], floored at 1e-4.
    """

    def __init__(self, channels: int, states: int, dt_rank: int) -> None:
        super().__init__()
        self.sizes = (dt_rank, states, states)
        self.x_proj = nn.Linear(channels, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(dt_rank, channels, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(channels))
        self.A_log = nn.Parameter(torch.empty(channels, states))
        self.D = nn.Parameter(torch.empty(channels))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        self.x_proj.reset_parameters()
        rank, states = self.sizes[:2]
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        dt = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp_().clamp_(min=1e-4)
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.A_log.copy_(torch.arange(1, states + 1, device=self.A_log.device).log().expand_as(self.A_log))
        nn.init.ones_(self.D)

    def A(self) -> Tensor:
        return -torch.exp(mixing.wide(self.A_log))  # (channels, states)


class DirectionParameters(S6Parameters):
    """What one time direction of the Mamba mixer owns: its depthwise filter, uniform in +-width^-1/2, and its S6."""

    def __init__(self, inner: int, states: int, conv_width: int, dt_rank: int) -> None:
        super().__init__(inner, states, dt_rank)
        bound = conv_width**-0.5
        self.conv_weight = nn.Parameter(torch.empty(inner, conv_width).uniform_(-bound, bound))
        self.conv_bias = nn.Parameter(torch.empty(inner).uniform_(-bound, bound))

    def tensors(self) -> mixing.Direction:
        """The parameters as the functions of `mixing` take them."""
        return mixing.Direction(
            self.conv_weight, self.conv_bias, self.x_proj.weight, self.dt_proj.weight, self.dt_bias, self.A_log, self.D
        )
