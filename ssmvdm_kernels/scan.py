"""The selective scan, in one direction and in both."""

from __future__ import annotations

from torch import Tensor

from . import backends, validation
from .ops import BOTH, CAT, FORWARD, MEAN, REVERSE, SUM, ScanTensors

MERGES = {"sum": SUM, "mean": MEAN, "cat": CAT, "none": CAT}


def selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    return_last_state: bool = False,
    *,
    reverse: bool = False,
    initial_state: Tensor | None = None,
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Selective scan (S6) over time, independently for every batch element, channel and lane.

    With delta' = softplus(delta + delta_bias), where softplus and bias are optional, per channel and state n:

        h_t = exp(delta'_t A) h_{t-1} + delta'_t u_t B_t
        y_t = (sum_n C_t h_t + D u_t) * silu(z_t)

    `reverse=True` runs t = length-1 .. 0 on tensors in natural time order: `h_{t-1}` above becomes `h_{t+1}`, the
    initial state stands after the last frame and the last state is that of frame 0.

    Sequences are (batch, channels, length, *lanes): `*lanes` are zero or more axes of independent sequences, so a
    video (b, c, f, h, w) is passed as it is. Strides are free; no copy is made when lanes, length or channels are
    contiguous in memory.

    Args:
        u: (batch, channels, length, *lanes), float32, bfloat16, float16 or float64.
        delta: like u.
        A: (channels, states), float32 (float64 if u is float64).
        B: (batch, states, length, *lanes) or (batch, groups, states, length, *lanes) in u's dtype, each group serving
            channels / groups neighbouring channels; or (channels, states), constant in time, in A's dtype.
        C: one of the forms of B, chosen independently.
        D: (channels,) in A's dtype, the weight of the skip connection.
        z: like u, the gate.
        delta_bias: (channels,) in A's dtype.
        delta_softplus: apply softplus to delta, after adding delta_bias.
        return_last_state: also return the state after the last step.
        reverse: run against time.
        initial_state: (batch, channels, states, *lanes) in A's dtype; zeros if None.
        backend: "auto" or the name of a backend, see `available_backends` and `explain`. A named backend is never
            replaced by another. "auto" that finds only "reference" warns once, or raises if SSMVDM_STRICT=1 is set.

    Returns:
        y, shaped like u, with u's dtype and order of dimensions in memory; with `return_last_state` the pair
        (y, last_state), where last_state is (batch, channels, states, *lanes) in A's dtype. Both are differentiable
        with respect to every tensor, once; twice with backend="reference". Arithmetic is float32, or float64 for
        float64 tensors, whatever the storage.

    Under autocast of u's device, float32 sequences (u, delta, z, B and C that vary in time) are brought to the
    autocast dtype and the other tensors to float32. Outside autocast dtypes have to match as stated.

    Raises:
        TypeError: an argument is not a tensor, or has the wrong dtype.
        ValueError: a wrong shape or device, channels not divisible by groups, a backend that is unknown or cannot take
            the call.
        RuntimeError: SSMVDM_STRICT=1 and no backend but "reference" can take the call.

    Source: Gu and Dao, "Mamba", arXiv 2312.00752, section 3, as used over video frames in arXiv 2403.07711.
    """
    caller = "selective_scan"
    validation.check_flag(caller, "delta_softplus", delta_softplus)
    validation.check_flag(caller, "return_last_state", return_last_state)
    validation.check_flag(caller, "reverse", reverse)
    tensors = ScanTensors(u, delta, A, B, C, D, z, delta_bias, initial_state=initial_state)
    tensors = validation.prepare_scan(caller, tensors)
    chosen = backends.select(caller, tensors.u, backend)
    direction = REVERSE if reverse else FORWARD
    y, last_state = chosen.scan(tensors, direction, SUM, delta_softplus, return_last_state)
    return (y, last_state) if return_last_state else y


def bidirectional_selective_scan(
    u: Tensor,
    delta: Tensor,
    A: Tensor,
    B: Tensor,
    C: Tensor,
    D: Tensor | None = None,
    z: Tensor | None = None,
    delta_bias: Tensor | None = None,
    delta_softplus: bool = False,
    *,
    u_b: Tensor | None = None,
    delta_b: Tensor | None = None,
    A_b: Tensor | None = None,
    B_b: Tensor | None = None,
    C_b: Tensor | None = None,
    D_b: Tensor | None = None,
    delta_bias_b: Tensor | None = None,
    merge: str = "sum",
    backend: str = "auto",
) -> Tensor | tuple[Tensor, Tensor]:
    """Both directions of the selective scan in one call, merged and gated, without flipping anything.

        y_f = selective_scan(u,   delta,   A,   B,   C,   D,   delta_bias)
        y_b = selective_scan(u_b, delta_b, A_b, B_b, C_b, D_b, delta_bias_b, reverse=True)

        merge="sum"   (y_f + y_b) * silu(z)             (batch, channels, length, *lanes)
        merge="mean"  0.5 (y_f + y_b) * silu(z)         the same
        merge="cat"   [y_f * silu(z), y_b * silu(z)]    (batch, 2 channels, length, *lanes), forward half first
        merge="none"  the two halves of "cat" as a pair of tensors

    The arguments that end in `_b` belong to the reverse direction, have the shape and dtype of their namesakes
    (B_b and C_b may have another of the three forms) and are in natural time order. None means shared with the forward
    direction: D_b=None with a D adds D u_b to the reverse direction too. Everything else is as in `selective_scan`:
    shapes, dtypes, layouts, autocast, backends and errors.

    Args:
        merge: "sum", "mean", "cat" or "none"; anything else is a ValueError.

    Source: the bidirectional mixers of Vim (Zhu et al., arXiv 2401.09417) and of Oshima et al., arXiv 2403.07711,
    whose two directions are these two.
    """
    caller = "bidirectional_selective_scan"
    validation.check_flag(caller, "delta_softplus", delta_softplus)
    validation.check_choice(caller, "merge", merge, tuple(MERGES))
    tensors = ScanTensors(u, delta, A, B, C, D, z, delta_bias, u_b, delta_b, A_b, B_b, C_b, D_b, delta_bias_b)
    tensors = validation.prepare_scan(caller, tensors)
    chosen = backends.select(caller, tensors.u, backend)
    y, _ = chosen.scan(tensors, BOTH, MERGES[merge], delta_softplus, False)
    if merge != "none":
        return y
    channels = tensors.u.shape[1]
    return y.narrow(1, 0, channels), y.narrow(1, channels, channels)
