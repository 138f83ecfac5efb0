"""The paper's "Mamba/Vim" mixer as a module on video tensors."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from ssmvdm_kernels.conv import bidirectional_conv1d
from ssmvdm_kernels.scan import bidirectional_selective_scan
from ssmvdm_kernels.validation import autocast_dtype, check_choice, check_size


class BidirectionalMamba(nn.Module):
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
            there; "fast" keeps what lies between. The numbers are the same, bit for bit.

    Parameters may be of any floating dtype; A, D and the biases of delta and of the convolutions enter the kernels in
    float32 (float64 for a float64 module).

    Raises:
        ValueError: a size below 1, an unknown `memory`; on call, an input of another shape than stated.
        TypeError: on call, an input that is no tensor or, outside autocast, has not the dtype of the parameters.

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
        super().__init__()
        caller = "BidirectionalMamba"
        check_choice(caller, "memory", memory, ("lean", "fast"))
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
        self.anticausal = DirectionParameters(inner, states, conv_width, dt_rank)
        self.out_proj = nn.Linear(inner, channels, bias=bias)

    def forward(self, x: Tensor) -> Tensor:
        if not isinstance(x, Tensor):
            raise TypeError(f"BidirectionalMamba: x must be a torch.Tensor, but is of type {type(x).__name__}.")
        if x.dim() < 3 or x.shape[1] != self.channels:
            raise ValueError(
                f"BidirectionalMamba: x must have the shape (batch, {self.channels}, length, *lanes), "
                f"but has {tuple(x.shape)}."
            )
        weight = self.in_proj.weight
        if x.dtype != weight.dtype and autocast_dtype(x) is None:
            raise TypeError(f"BidirectionalMamba: x must be {weight.dtype} like the parameters, but is {x.dtype}.")
        xz = _project(x, weight, self.in_proj.bias)  # (batch, 2 inner, length, *lanes)
        if self.memory == "lean" and torch.is_grad_enabled():
            return checkpoint(self._mix, xz, use_reentrant=False, preserve_rng_state=False)
        return self._mix(xz)

    def _mix(self, xz: Tensor) -> Tensor:
        x, z = xz.chunk(2, dim=1)
        ahead, back = self.causal, self.anticausal
        u, u_b = bidirectional_conv1d(
            x, _wide(ahead.conv_weight), _wide(ahead.conv_bias),
            weight_b=_wide(back.conv_weight), bias_b=_wide(back.conv_bias),
        )  # fmt: skip
        delta, B, C = ahead.modulate(u)
        delta_b, B_b, C_b = back.modulate(u_b)
        y = bidirectional_selective_scan(
            u, delta, ahead.A(), B, C, _wide(ahead.D), z, _wide(ahead.dt_bias), True,
            u_b=u_b, delta_b=delta_b, A_b=back.A(), B_b=B_b, C_b=C_b,
            D_b=_wide(back.D), delta_bias_b=_wide(back.dt_bias), merge="sum",
        )  # fmt: skip
        return _project(y, self.out_proj.weight, self.out_proj.bias)

    def extra_repr(self) -> str:
        states, width = self.causal.A_log.shape[1], self.causal.conv_weight.shape[1]
        return f"channels={self.channels}, states={states}, conv_width={width}, memory={self.memory!r}"


class DirectionParameters(nn.Module):
    """What one time direction of the mixer owns: its depthwise filter and its S6 parameters.

    Initialised as in Mamba: A = -(1..states), D = 1, W_dt uniform in +-rank^-1/2, and a bias that makes
    softplus(dt_bias) log-uniform in [1e-3, 1e-1], floored at 1e-4.
    """

    def __init__(self, inner: int, states: int, conv_width: int, dt_rank: int) -> None:
        super().__init__()
        self.sizes = (dt_rank, states, states)
        self.conv_weight = nn.Parameter(torch.empty(inner, conv_width))
        self.conv_bias = nn.Parameter(torch.empty(inner))
        self.x_proj = nn.Linear(inner, sum(self.sizes), bias=False)
        self.dt_proj = nn.Linear(dt_rank, inner, bias=False)
        self.dt_bias = nn.Parameter(torch.empty(inner))
        self.A_log = nn.Parameter(torch.empty(inner, states))
        self.D = nn.Parameter(torch.empty(inner))
        self.reset_parameters()

    @torch.no_grad()
    def reset_parameters(self) -> None:
        for parameter in (self.conv_weight, self.conv_bias):
            nn.init.uniform_(parameter, -(self.conv_weight.shape[1] ** -0.5), self.conv_weight.shape[1] ** -0.5)
        self.x_proj.reset_parameters()
        rank, states = self.sizes[:2]
        nn.init.uniform_(self.dt_proj.weight, -(rank**-0.5), rank**-0.5)
        dt = torch.empty_like(self.dt_bias).uniform_(math.log(1e-3), math.log(1e-1)).exp_().clamp_(min=1e-4)
        self.dt_bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        self.A_log.copy_(torch.arange(1, states + 1, device=self.A_log.device).log().expand_as(self.A_log))
        nn.init.ones_(self.D)

    def modulate(self, u: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """delta (batch, inner, length, *lanes) before bias and softplus; B and C (batch, states, length, *lanes)."""
        dt_low, B, C = _project(u, self.x_proj.weight).split(self.sizes, dim=1)
        return _project(dt_low, self.dt_proj.weight), B, C

    def A(self) -> Tensor:
        return -torch.exp(_wide(self.A_log))  # (inner, states)


def _wide(parameter: Tensor) -> Tensor:
    """The dtype in which the kernels take parameters."""
    return parameter.to(torch.promote_types(parameter.dtype, torch.float32))


def _project(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """Linear map over the channels of (batch, channels, length, *lanes), in the layout that x has.

    Videos are multiplied from the left, weight (out, in) times (in, length * lanes), where PyTorch's own matmul of
    these shapes would copy the video to fold the batch into one product. Two cases do fold: channels that are
    contiguous, for which that is a view, and sequences shorter than their width, whose copy is smaller than the weight
    gradients, one per batch element, that the product from the left would sum.
    """
    columns = x.flatten(2)  # (batch, in, tokens)
    batch, width, tokens = columns.shape
    if columns.stride(1) == 1 or (batch > 1 and tokens < width):
        y = F.linear(columns.transpose(1, 2), weight, bias).transpose(1, 2)
    elif batch == 1:
        product = weight @ columns[0] if bias is None else torch.addmm(bias.unsqueeze(1), weight, columns[0])
        y = product.unsqueeze(0)
    else:
        weights = weight.expand(batch, *weight.shape)
        y = torch.bmm(weights, columns) if bias is None else torch.baddbmm(bias.unsqueeze(1), weights, columns)
    return y.unflatten(2, x.shape[2:])
