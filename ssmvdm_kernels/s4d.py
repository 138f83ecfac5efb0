"""The S4D scan: a complex diagonal recurrence with coefficients constant in time, in one direction and in both."""

from __future__ import annotations

import torch
from torch import Tensor

from . import backends, validation
from .ops import BOTH, FORWARD, REVERSE, SUM
from .ops_s4d import S4dTensors
from .scan import MERGES


def s4d_scan(
    u: Tensor,
    decay: Tensor,
    weight: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """The recurrence of S4D over time, independently for every batch element, channel and lane:

        h_t = decay h_{t-1} + u_t
        y_t = (2 Re sum_n weight_n h_{n,t} + D u_t) * silu(z_t)

    This is the causal convolution of u with k_l = 2 Re sum_n weight_n decay_n^l, without a transform and without
    padding; kernels walk the recurrence or, over few time steps, convolve directly, whichever is less work. A stable
    state space has |decay| <= 1; where a larger one makes k_l overflow, results are infinite or NaN.
    `reverse=True` runs t = length-1 .. 0 on tensors in natural time order.

    Args:
        u: (batch, channels, length, *lanes), float32, bfloat16, float16 or float64; strides as in `selective_scan`.
        decay: (channels, modes), complex64 (complex128 if u is float64): exp(dt A) of a diagonal state space.
        weight: like decay: C (exp(dt A) - 1) / A for a zero-order hold.
        D: (channels,), float32 (float64 if u is float64).
        z: like u, the gate.
        reverse: run against time.
        backend: as in `selective_scan`.

    Returns:
        y, shaped like u, with u's dtype and order of dimensions in memory. Arithmetic is float32, or float64 for
        float64 tensors. Differentiable once with respect to every tensor; twice with backend="reference".

    Under autocast of u's device, float32 u and z are brought to the autocast dtype; the parameters stay.

    Raises:
        TypeError: an argument is not a tensor, or has the wrong dtype.
        ValueError: a wrong shape or device, a backend that is unknown or cannot take the call.
        RuntimeError: SSMVDM_STRICT=1 and no backend but "reference" can take the call.

    Source: Gu et al., "On the Parameterization and Initialization of Diagonal State Space Models", arXiv 2206.11893.
    """
    caller = "s4d_scan"
    validation.check_flag(caller, "reverse", reverse)
    return _scan(caller, (u, decay, weight, D, z), REVERSE if reverse else FORWARD, SUM, backend)


def bidirectional_s4d_scan(
    u: Tensor,
    decay: Tensor,
    weight: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    *,
    u_b: Tensor | None = None,
    decay_b: Tensor | None = None,
    weight_b: Tensor | None = None,
    D_b: Tensor | None = None,
    merge: str = "sum",
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Both directions of `s4d_scan` in one call, merged and gated, without flipping anything.

        y_f = s4d_scan(u,   decay,   weight,   D)
        y_b = s4d_scan(u_b, decay_b, weight_b, D_b, reverse=True)

    The arguments that end in `_b` belong to the reverse direction, have the shape and dtype of their namesakes and are
    in natural time order; None means shared with the forward direction. `merge` and the gate are those of
    `bidirectional_selective_scan`, everything else is as in `s4d_scan`.
    """
    caller = "bidirectional_s4d_scan"
    validation.check_choice(caller, "merge", merge, tuple(MERGES))
    y = _scan(caller, (u, decay, weight, D, z, u_b, decay_b, weight_b, D_b), BOTH, MERGES[merge], backend)
    if merge != "none":
        return y
    channels = u.shape[1]
    return y.narrow(1, 0, channels), y.narrow(1, channels, channels)


def _scan(caller: str, arguments: tuple[Tensor | None, ...], direction: int, merge: int, backend: str) -> Tensor:
    tensors = validation.prepare_s4d(caller, S4dTensors(*arguments))
    chosen = backends.select(caller, tensors.u, backend)
    real = (t if t is None or not t.is_complex() else torch.view_as_real(t.resolve_conj()) for t in tensors)
    return chosen.s4d(S4dTensors(*real), direction, merge)
