"""The depthwise convolution in time that precedes the scan, in one direction and in both."""

from __future__ import annotations

from torch import Tensor

from . import backends, validation
from .ops import BOTH, FORWARD, REVERSE, ConvTensors


def causal_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    activation: str | None = "silu",
    reverse: bool = False,
    backend: str = "auto",
) -> Tensor:
    """Depthwise convolution over time in one direction: y_t = act(bias + sum_k weight_k x_{t - (width-1) + k}).

    `reverse=True` is the anti-causal direction, y_t = act(bias + sum_k weight_k x_{t + (width-1) - k}): the filter acts
    as it would on the time-flipped sequence, and both tensors are in natural time order. Everything else, arguments,
    layouts, autocast and errors, is as in `bidirectional_conv1d`.
    """
    caller = "causal_conv1d"
    validation.check_choice(caller, "activation", activation, ("silu", None))
    validation.check_flag(caller, "reverse", reverse)
    tensors = validation.prepare_conv1d(caller, ConvTensors(x, weight, bias))
    chosen = backends.select(caller, tensors.x, backend)
    y, y_b = chosen.conv1d(tensors, REVERSE if reverse else FORWARD, activation == "silu")
    return y_b if reverse else y


def bidirectional_conv1d(
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None = None,
    *,
    weight_b: Tensor | None = None,
    bias_b: Tensor | None = None,
    activation: str | None = "silu",
    backend: str = "auto",
) -> tuple[Tensor, Tensor]:
    """Depthwise convolution over time, causal and anti-causal, with one read of x:

        y_t   = act(bias   + sum_k weight_k   x_{t - (width-1) + k})
        y_b,t = act(bias_b + sum_k weight_b,k x_{t + (width-1) - k})

    x is zero outside its length. Both results are in natural time order. `weight_b` is the filter as it acts on the
    time-flipped sequence, which is how Vim and the paper store it: y_b equals flip(conv(flip(x), weight_b)).

    Args:
        x: (batch, channels, length, *lanes), float32, bfloat16, float16 or float64, any strides.
        weight: (channels, width), in x's dtype or float32 (float64 if x is float64), as are all the others.
        bias: (channels,).
        weight_b: like weight; None means shared with the causal direction.
        bias_b: like bias; None means shared with the causal direction.
        activation: "silu", or None for none.
        backend: as in `selective_scan`.

    Returns:
        (y, y_b), both shaped like x, with x's dtype and order of dimensions in memory. Arithmetic is float32, or
        float64 for float64 tensors. Differentiable once; twice with backend="reference".

    Under autocast of x's device, a float32 x is brought to the autocast dtype and the filters to float32.

    Raises:
        TypeError: an argument is not a tensor, or has the wrong dtype.
        ValueError: a wrong shape or device, an unknown activation, a backend that is unknown or cannot take the call.
        RuntimeError: SSMVDM_STRICT=1 and no backend but "reference" can take the call.

    Source: the convolutions of the "Mamba/Vim" mixer of arXiv 2403.07711; Mamba, arXiv 2312.00752, figure 3.
    """
    caller = "bidirectional_conv1d"
    validation.check_choice(caller, "activation", activation, ("silu", None))
    tensors = validation.prepare_conv1d(caller, ConvTensors(x, weight, bias, weight_b, bias_b))
    chosen = backends.select(caller, tensors.x, backend)
    return chosen.conv1d(tensors, BOTH, activation == "silu")
