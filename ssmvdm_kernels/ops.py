"""The operators as PyTorch is told of them: arguments, schemas, output shapes, derivatives. No arithmetic is here.

`operators.Operators` makes operators of these formulas. All of them are functional: they change no input, and no output
shares memory with an input.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor

FORWARD, REVERSE, BOTH = 0, 1, 2  # the operators' `direction`
SUM, MEAN, CAT = 0, 1, 2  # the operators' `merge`


class ScanTensors(NamedTuple):
    """The tensor arguments of one scan in the order of the operators' schema; `_b` belongs to the reverse direction."""

    u: Tensor  # (batch, channels, length, *lanes)
    delta: Tensor  # like u
    A: Tensor  # (channels, states)
    B: Tensor  # (batch, [groups,] states, length, *lanes) | (channels, states)
    C: Tensor  # the same three forms, independently of B
    D: Tensor | None = None  # (channels,)
    z: Tensor | None = None  # like u
    delta_bias: Tensor | None = None  # (channels,)
    u_b: Tensor | None = None
    delta_b: Tensor | None = None
    A_b: Tensor | None = None
    B_b: Tensor | None = None
    C_b: Tensor | None = None
    D_b: Tensor | None = None
    delta_bias_b: Tensor | None = None
    initial_state: Tensor | None = None  # (batch, channels, states, *lanes)


# The bit of `scan_backward`'s `needs` that asks for y of the forward pass, which it computes again in any case.
NEEDS_Y = 1 << len(ScanTensors._fields)


class ConvTensors(NamedTuple):
    """The tensor arguments of one convolution, in the order of the operators' schema."""

    x: Tensor  # (batch, channels, length, *lanes)
    weight: Tensor  # (channels, width)
    bias: Tensor | None = None  # (channels,)
    weight_b: Tensor | None = None
    bias_b: Tensor | None = None


class Formula(NamedTuple):
    """One computation and its first derivative: the operators `name`_forward and `name`_backward."""

    name: str
    forward: str  # schema, from the opening bracket
    backward: str
    forward_shapes: Callable  # also what runs on meta tensors
    backward_shapes: Callable
    setup: Callable  # (ctx, inputs, output), as torch.autograd.Function has it
    vjp: Callable  # (ctx, backward, *gradients of the outputs); backward(tensors, *options) can be differentiated


def gradients_of(names: tuple[str, ...], *more: str) -> str:
    """The results in the schema of a backward operator."""
    return "(" + ", ".join(f"Tensor {name}" for name in (*(f"d{name}" for name in names), *more)) + ")"


# -- shapes ------------------------------------------------------------------------------------------------------------


def dense_like(tensor: Tensor, shape: tuple[int, ...] | None = None) -> Tensor:
    """An empty dense tensor whose dimensions lie in memory in the order of `tensor`'s strides, largest first.

    This is the layout rule of every sequence output and gradient. The sort is stable: among equal strides, those of
    an expanded tensor for instance, the dimension that comes first is the outer one.
    """
    shape = tuple(tensor.shape) if shape is None else shape
    strides = [1] * len(shape)
    step = 1
    outermost_first = sorted(range(len(shape)), key=lambda axis: -tensor.stride(axis))
    for axis in reversed(outermost_first):
        strides[axis] = step
        step = step * max(shape[axis], 1)
    return torch.empty_strided(shape, strides, dtype=tensor.dtype, device=tensor.device)


def gradient_shapes(tensors, needs: int, sequences: tuple[str, ...], names: tuple[str, ...]) -> tuple[Tensor, ...]:
    """One empty tensor per argument: dense like a sequence, contiguous for a parameter, (0,) where none is wanted."""
    first = tensors[0]
    gradients = []
    for index, (name, tensor) in enumerate(zip(names, tensors, strict=True)):
        if tensor is None or not needs >> index & 1:
            gradients.append((first if tensor is None else tensor).new_empty((0,)))
        elif name in sequences and tensor.dim() >= first.dim():  # constant B and C have two dimensions
            gradients.append(dense_like(tensor))
        else:
            gradients.append(tensor.new_empty(tensor.shape))
    return tuple(gradients)


def output_shape(u: Tensor, direction: int, merge: int) -> tuple[int, ...]:
    doubled = direction == BOTH and merge == CAT
    return (u.shape[0], u.shape[1] * 2 if doubled else u.shape[1], *u.shape[2:])


# -- derivatives -------------------------------------------------------------------------------------------------------


def needed(ctx, names: tuple[str, ...]) -> int:
    """The bit mask of the inputs whose gradient this backward pass has to return. One direction has no use for `_b`."""
    used = (ctx.direction == BOTH or not name.endswith("_b") for name in names)
    return sum(1 << index for index, is_used in enumerate(used) if is_used and ctx.needs_input_grad[index])


def only_needed(gradients: tuple[Tensor, ...], needs: int) -> tuple[Tensor | None, ...]:
    return tuple(gradient if needs >> index & 1 else None for index, gradient in enumerate(gradients))


def _zeros_without_memory(like: Tensor, shape: tuple[int, ...]) -> Tensor:
    """The gradient of an output nobody used. The kernels accept any strides, so one element stands for all."""
    return like.new_zeros(()).expand(shape)


# -- the selective scan ------------------------------------------------------------------------------------------------

_SCAN_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? u_b, Tensor? delta_b, Tensor? A_b, Tensor? B_b, Tensor? C_b, Tensor? D_b, Tensor? delta_bias_b, "
    "Tensor? initial_state"
)


def _scan_forward_shapes(*arguments):
    *tensors, direction, merge, _, return_last_state = arguments
    tensors = ScanTensors(*tensors)
    batch, channels, _, *lanes = tensors.u.shape
    y = dense_like(tensors.u, output_shape(tensors.u, direction, merge))
    states = tensors.A.shape[1]
    last_state = tensors.A.new_empty((batch, channels, states, *lanes) if return_last_state else (0,))
    return y, last_state


def _scan_backward_shapes(dy, dlast_state, *arguments):
    *tensors, direction, merge, _delta_softplus, needs = arguments
    sequences = ("u", "delta", "B", "C", "z", "u_b", "delta_b", "B_b", "C_b")
    gradients = gradient_shapes(tensors, needs, sequences, ScanTensors._fields)
    u = tensors[0]
    y = dense_like(u, output_shape(u, direction, merge)) if needs & NEEDS_Y else u.new_empty((0,))
    return *gradients, y


def _scan_setup(ctx, inputs, output):
    *tensors, ctx.direction, ctx.merge, ctx.delta_softplus, ctx.return_last_state = inputs
    ctx.save_for_backward(*tensors)
    ctx.y_shape = output[0].shape
    ctx.set_materialize_grads(False)


def _scan_vjp(ctx, backward, dy, dlast_state):
    tensors = ScanTensors(*ctx.saved_tensors)
    if not ctx.return_last_state:
        dlast_state = None  # compiled graphs pass a gradient for the (0,) placeholder
    needs = needed(ctx, ScanTensors._fields)
    if needs == 0 or (dy is None and dlast_state is None):
        return (None,) * (len(tensors) + 4)
    if dy is None:
        dy = _zeros_without_memory(tensors.u, ctx.y_shape)
    options = (ctx.direction, ctx.merge, ctx.delta_softplus, needs)
    *gradients, _y = backward((dy, dlast_state, *tensors), *options)
    return *only_needed(gradients, needs), None, None, None, None


SCAN = Formula(
    name="scan",
    forward=f"({_SCAN_ARGUMENTS}, int direction, int merge, bool delta_softplus, bool return_last_state)"
    " -> (Tensor y, Tensor last_state)",
    backward=f"(Tensor dy, Tensor? dlast_state, {_SCAN_ARGUMENTS}, int direction, int merge, bool delta_softplus, "
    f"int needs) -> {gradients_of(ScanTensors._fields, 'y')}",
    forward_shapes=_scan_forward_shapes,
    backward_shapes=_scan_backward_shapes,
    setup=_scan_setup,
    vjp=_scan_vjp,
)


# -- the convolution ---------------------------------------------------------------------------------------------------

_CONV_ARGUMENTS = "Tensor x, Tensor weight, Tensor? bias, Tensor? weight_b, Tensor? bias_b"


def _conv1d_forward_shapes(x, weight, bias, weight_b, bias_b, direction, silu):
    nothing = (0,)
    y = dense_like(x) if direction != REVERSE else x.new_empty(nothing)
    y_b = dense_like(x) if direction != FORWARD else x.new_empty(nothing)
    return y, y_b


def _conv1d_backward_shapes(dy, dy_b, *arguments):
    *tensors, _direction, _silu, needs = arguments
    return gradient_shapes(tensors, needs, ("x",), ConvTensors._fields)


def _conv1d_setup(ctx, inputs, output):
    *tensors, ctx.direction, ctx.silu = inputs
    ctx.save_for_backward(*tensors)
    ctx.shapes = tuple(out.shape for out in output)
    ctx.set_materialize_grads(False)


def _conv1d_vjp(ctx, backward, *outgoing):
    tensors = ConvTensors(*ctx.saved_tensors)
    needs = needed(ctx, ConvTensors._fields)
    if needs == 0 or all(gradient is None for gradient in outgoing):
        return (None,) * (len(tensors) + 2)
    dy, dy_b = (
        _zeros_without_memory(tensors.x, shape) if gradient is None else gradient
        for gradient, shape in zip(outgoing, ctx.shapes, strict=True)
    )
    gradients = backward((dy, dy_b, *tensors), ctx.direction, ctx.silu, needs)
    return *only_needed(gradients, needs), None, None


CONV1D = Formula(
    name="conv1d",
    forward=f"({_CONV_ARGUMENTS}, int direction, bool silu) -> (Tensor y, Tensor y_b)",
    backward=f"(Tensor dy, Tensor dy_b, {_CONV_ARGUMENTS}, int direction, bool silu, int needs)"
    f" -> {gradients_of(ConvTensors._fields)}",
    forward_shapes=_conv1d_forward_shapes,
    backward_shapes=_conv1d_backward_shapes,
    setup=_conv1d_setup,
    vjp=_conv1d_vjp,
)
