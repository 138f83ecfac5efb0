"""Vim's bidirectional Mamba (Zhu et al., arXiv 2401.09417) with its names, signatures and parameters, without flips.

`Mamba(bimamba_type="none" | "v1" | "v2")` loads the state dicts of Vim's layer, and of mamba-ssm's for "none".
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from ..conv import bidirectional_conv1d
from ..mixing import wide
from ..project import project
from ..scan import bidirectional_selective_scan
from ..validation import check_choice, check_like_parameters, check_size, check_tensor
from .arguments import LayerTensors
from .inner import convolve_and_scan, inner, modulate, project_out, recomputed


def bimamba_inner_fn(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    out_proj_weight: Tensor,
    out_proj_bias: Tensor | None,
    A: Tensor,
    A_b: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`compat.mamba.mamba_inner_fn` in both directions, which share everything but A (forward) and A_b (reverse).

    Keeps xz for the backward pass and computes the rest again there. Returns (batch, length, out).
    """
    tensors = LayerTensors(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, D, delta_bias, B_proj_bias,
        C_proj_bias, A_b=A_b, out_proj_weight=out_proj_weight, out_proj_bias=out_proj_bias,
    )  # fmt: skip
    return inner("bimamba_inner_fn", tensors, delta_softplus, "A_b", "out_proj_weight")


def mamba_inner_fn_no_out_proj(
    xz: Tensor,
    conv1d_weight: Tensor,
    conv1d_bias: Tensor | None,
    x_proj_weight: Tensor,
    delta_proj_weight: Tensor,
    A: Tensor,
    B: Tensor | None = None,
    C: Tensor | None = None,
    D: Tensor | None = None,
    delta_bias: Tensor | None = None,
    B_proj_bias: Tensor | None = None,
    C_proj_bias: Tensor | None = None,
    delta_softplus: bool = True,
) -> Tensor:
    """`compat.mamba.mamba_inner_fn` without its last projection: returns (batch, channels, length)."""
    tensors = LayerTensors(
        xz, conv1d_weight, conv1d_bias, x_proj_weight, delta_proj_weight, A, B, C, D, delta_bias, B_proj_bias,
        C_proj_bias,
    )  # fmt: skip
    return inner("mamba_inner_fn_no_out_proj", tensors, delta_softplus)


class Mamba(nn.Module):
    """Vim's Mamba layer on (batch, length, d_model), which is read as it lies in memory.

        "none"  one direction: mamba-ssm's layer
        "v1"    both directions share the convolution and all projections; each has its own A
        "v2"    each has its own convolution, projections, A and D; W_in, z and W_out are shared

    Parameters have Vim's names: in_proj, conv1d, x_proj, dt_proj, A_log, D, out_proj, gamma, and those ending in `_b`.

    Args:
        d_model, d_state, d_conv, expand: width of input and output, states per inner channel, taps of the
            convolution, inner = expand * d_model.
        dt_rank: rank of the projection to delta; "auto" is ceil(d_model / 16).
        dt_min, dt_max, dt_init_floor: softplus of dt_proj's bias is log-uniform in between at first, and above the
            floor. dt_init, dt_scale: its weight is uniform ("random") in, or "constant", dt_scale / sqrt(dt_rank).
        conv_bias, bias: whether the convolution, and W_in and W_out, have one.
        use_fast_path: keep W_in's output for the backward pass and compute the rest again; else keep everything.
        layer_idx: kept as an attribute, for models that number their layers.
        device, dtype: of the parameters; A_log and D are always float32.
        bimamba_type: see above. if_divide_out: halve the sum of the two directions of "v2"; the others ignore it.
        init_layer_scale: None, or the first value of `gamma`, one factor per channel on the output.

    Raises:
        ValueError: a size below 1, an expand that leaves no inner channel, an unknown bimamba_type or dt_init; a call
            with an input of another shape or on another device, or with inference_params, for it takes whole sequences
            only.
        TypeError: a size that is no integer, an expand that is no number; a call with an input that is no dense tensor
            of the parameters' dtype.
    """

    def __init__(
        self,
        d_model: int,
        d_state: int = 16,
        d_conv: int = 4,
        expand: float = 2,
        dt_rank: int | str = "auto",
        dt_min: float = 0.001,
        dt_max: float = 0.1,
        dt_init: str = "random",
        dt_scale: float = 1.0,
        dt_init_floor: float = 1e-4,
        conv_bias: bool = True,
        bias: bool = False,
        use_fast_path: bool = True,
        layer_idx: int | None = None,
        device=None,
        dtype=None,
        bimamba_type: str = "none",
        if_divide_out: bool = False,
        init_layer_scale: float | None = None,
    ) -> None:
        super().__init__()
        check_choice("Mamba", "bimamba_type", bimamba_type, ("none", "v1", "v2"))
        check_choice("Mamba", "dt_init", dt_init, ("random", "constant"))
        for name, size in (("d_model", d_model), ("d_state", d_state), ("d_conv", d_conv)):
            check_size("Mamba", name, size)
        if dt_rank == "auto":
            dt_rank = math.ceil(d_model / 16)
        check_size("Mamba", "dt_rank", dt_rank)
        self.d_model, self.d_state, self.d_conv, self.expand = d_model, d_state, d_conv, expand
        self.d_inner = _inner_channels(expand, d_model)
        self.dt_rank = dt_rank
        self.use_fast_path, self.layer_idx = use_fast_path, layer_idx
        self.bimamba_type, self.if_divide_out = bimamba_type, if_divide_out
        factory = {"device": device, "dtype": dtype}
        self.gamma = None
        if init_layer_scale is not None:
            self.gamma = nn.Parameter(torch.full((d_model,), init_layer_scale, device=device))
        self.in_proj = nn.Linear(d_model, 2 * self.d_inner, bias=bias, **factory)
        for suffix in ("", "_b") if bimamba_type == "v2" else ("",):
            self._add_direction(suffix, conv_bias, factory)
            self._reset_dt(suffix, dt_min, dt_max, dt_init, dt_scale, dt_init_floor)
        self._add_decay("A_log", device)
        if bimamba_type != "none":
            self._add_decay("A_b_log", device)
        self.out_proj = nn.Linear(self.d_inner, d_model, bias=bias, **factory)

    def _add_direction(self, suffix: str, conv_bias: bool, factory: dict) -> None:
        inner, width = self.d_inner, self.d_conv
        conv = nn.Conv1d(inner, inner, width, groups=inner, padding=width - 1, bias=conv_bias, **factory)
        self.add_module(f"conv1d{suffix}", conv)
        self.add_module(f"x_proj{suffix}", nn.Linear(inner, self.dt_rank + 2 * self.d_state, bias=False, **factory))
        self.add_module(f"dt_proj{suffix}", nn.Linear(self.dt_rank, inner, **factory))
        self._add_undecayed(f"D{suffix}", torch.ones(inner, device=factory["device"]))

    def _add_decay(self, name: str, device) -> None:
        logarithms = torch.arange(1, self.d_state + 1, dtype=torch.float32, device=device).log()
        self._add_undecayed(name, logarithms.repeat(self.d_inner, 1))

    def _add_undecayed(self, name: str, value: Tensor) -> None:
        parameter = nn.Parameter(value)
        parameter._no_weight_decay = True  # type: ignore[attr-defined]  # optimizers of those packages read it
        self.register_parameter(name, parameter)

    @torch.no_grad()
    def _reset_dt(self, suffix: str, low: float, high: float, kind: str, scale: float, floor: float) -> None:
        projection = getattr(self, f"dt_proj{suffix}")
        bound = scale * self.dt_rank**-0.5
        if kind == "constant":
            nn.init.constant_(projection.weight, bound)
        else:
            nn.init.uniform_(projection.weight, -bound, bound)
        dt = torch.empty_like(projection.bias).uniform_(math.log(low), math.log(high)).exp_().clamp_(min=floor)
        projection.bias.copy_(dt + torch.log(-torch.expm1(-dt)))  # the inverse of softplus
        projection.bias._no_reinit = True  # models of those packages zero the biases that lack it

    def forward(self, hidden_states: Tensor, inference_params: None = None) -> Tensor:
        if inference_params is not None:
            raise ValueError(
                "Mamba: inference_params must be None: this layer computes whole sequences and does not decode step by "
                f"step, but is of type {type(inference_params).__name__}."
            )
        check_tensor("Mamba", "hidden_states", hidden_states)
        if hidden_states.dim() != 3 or hidden_states.shape[2] != self.d_model:
            raise ValueError(
                f"Mamba: hidden_states must have the shape (batch, length, {self.d_model}), "
                f"but has {tuple(hidden_states.shape)}."
            )
        check_like_parameters("Mamba", "hidden_states", hidden_states, self.in_proj.weight)
        xz = project(hidden_states.transpose(1, 2), self.in_proj.weight, self.in_proj.bias)
        mix = self._scan_v2 if self.bimamba_type == "v2" else self._scan
        y = recomputed(self.use_fast_path, mix, xz)
        out = project_out(y, self.out_proj.weight, self.out_proj.bias)
        return out if self.gamma is None else out * self.gamma

    def _scan(self, xz: Tensor) -> Tensor:
        A_b = -torch.exp(wide(self.A_b_log)) if self.bimamba_type == "v1" else None
        tensors = LayerTensors(
            xz, self.conv1d.weight, self.conv1d.bias, self.x_proj.weight, self.dt_proj.weight,
            -torch.exp(wide(self.A_log)), D=wide(self.D), delta_bias=wide(self.dt_proj.bias), A_b=A_b,
        )  # fmt: skip
        return convolve_and_scan(tensors, delta_softplus=True)

    def _scan_v2(self, xz: Tensor) -> Tensor:
        x, z = xz.chunk(2, dim=1)
        us = bidirectional_conv1d(
            x, self.conv1d.weight.squeeze(1), self.conv1d.bias, weight_b=self.conv1d_b.weight.squeeze(1),
            bias_b=self.conv1d_b.bias,
        )  # fmt: skip
        ahead = modulate(us[0], self.x_proj.weight, self.dt_proj.weight, self.d_state)
        back = modulate(us[1], self.x_proj_b.weight, self.dt_proj_b.weight, self.d_state)
        return bidirectional_selective_scan(
            us[0], ahead.delta, -torch.exp(wide(self.A_log)), ahead.B, ahead.C, wide(self.D), z,
            wide(self.dt_proj.bias), True, u_b=us[1], delta_b=back.delta, A_b=-torch.exp(wide(self.A_b_log)),
            B_b=back.B, C_b=back.C, D_b=wide(self.D_b), delta_bias_b=wide(self.dt_proj_b.bias),
            merge="mean" if self.if_divide_out else "sum",
        )  # fmt: skip


def _inner_channels(expand: float, d_model: int) -> int:
    if isinstance(expand, bool) or not isinstance(expand, int | float):
        raise TypeError(f"Mamba: expand must be a number, but is of type {type(expand).__name__}.")
    if not 1 <= expand * d_model < math.inf:
        raise ValueError(f"Mamba: expand must be finite and at least 1 / d_model = 1 / {d_model}, but is {expand}.")
    return int(expand * d_model)
