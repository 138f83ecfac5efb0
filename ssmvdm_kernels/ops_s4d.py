"""The operators of the S4D scan as PyTorch is told of them, by the rules of ops.py.

Complex parameters cross the border as pairs of real numbers, (channels, modes, 2).
"""

from __future__ import annotations

from typing import NamedTuple

from torch import Tensor

from .ops import Formula, dense_like, gradient_shapes, gradients_of, needed, only_needed, output_shape


class S4dTensors(NamedTuple):
    """The tensor arguments of one S4D scan in the order of the schema; `_b` belongs to the reverse direction."""

    u: Tensor  # (batch, channels, length, *lanes)
    decay: Tensor  # (channels, modes, 2)
    weight: Tensor  # (channels, modes, 2)
    D: Tensor | None = None  # (channels,)
    z: Tensor | None = None  # like u
    u_b: Tensor | None = None
    decay_b: Tensor | None = None
    weight_b: Tensor | None = None
    D_b: Tensor | None = None


# The bit of `s4d_backward`'s `needs` that asks for y of the forward pass.
NEEDS_Y = 1 << len(S4dTensors._fields)

_ARGUMENTS = (
    "Tensor u, Tensor decay, Tensor weight, Tensor? D, Tensor? z, "
    "Tensor? u_b, Tensor? decay_b, Tensor? weight_b, Tensor? D_b"
)


def _forward_shape(u, *arguments):
    direction, merge = arguments[-2:]
    return dense_like(u, output_shape(u, direction, merge))


def _backward_shapes(dy, *arguments):
    *tensors, direction, merge, needs = arguments
    gradients = gradient_shapes(tensors, needs, ("u", "z", "u_b"), S4dTensors._fields)
    u = tensors[0]
    y = dense_like(u, output_shape(u, direction, merge)) if needs & NEEDS_Y else u.new_empty((0,))
    return *gradients, y


def _setup(ctx, inputs, output):
    *tensors, ctx.direction, ctx.merge = inputs
    ctx.save_for_backward(*tensors)


def _vjp(ctx, backward, dy):
    tensors = S4dTensors(*ctx.saved_tensors)
    needs = needed(ctx, S4dTensors._fields)
    *gradients, _y = backward((dy, *tensors), ctx.direction, ctx.merge, needs)
    return *only_needed(gradients, needs), None, None


S4D = Formula(
    name="s4d",
    forward=f"({_ARGUMENTS}, int direction, int merge) -> Tensor",
    backward=f"(Tensor dy, {_ARGUMENTS}, int direction, int merge, int needs)"
    f" -> {gradients_of(S4dTensors._fields, 'y')}",
    forward_shapes=_forward_shape,
    backward_shapes=_backward_shapes,
    setup=_setup,
    vjp=_vjp,
)
