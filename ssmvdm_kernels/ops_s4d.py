"""The operators `ssmvdm::s4d_*` as PyTorch sees them: schemas, output shapes, derivatives, by the rules of ops.py.

Complex parameters cross the border as pairs of real numbers, (channels, modes, 2).
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ssmvdm_kernels import ops


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
_library = torch.library.Library("ssmvdm", "FRAGMENT")
_library.define(f"s4d_forward({_ARGUMENTS}, int direction, int merge) -> Tensor", tags=ops.TAGS)
_library.define(
    f"s4d_backward(Tensor dy, {_ARGUMENTS}, int direction, int merge, int needs)"
    f" -> {ops.gradients_of(S4dTensors._fields, 'y')}",
    tags=ops.TAGS,
)
s4d_forward = torch.ops.ssmvdm.s4d_forward.default
s4d_backward = torch.ops.ssmvdm.s4d_backward.default


@torch.library.register_fake("ssmvdm::s4d_forward", lib=_library)
def _forward_shape(u, *arguments):
    direction, merge = arguments[-2:]
    return ops.dense_like(u, ops.output_shape(u, direction, merge))


@torch.library.register_fake("ssmvdm::s4d_backward", lib=_library)
def _backward_shapes(dy, *arguments):
    *tensors, direction, merge, needs = arguments
    gradients = ops.gradient_shapes(tensors, needs, ("u", "z", "u_b"), S4dTensors._fields)
    u = tensors[0]
    y = ops.dense_like(u, ops.output_shape(u, direction, merge)) if needs & NEEDS_Y else u.new_empty((0,))
    return *gradients, y


def _setup(ctx, inputs, output):
    *tensors, ctx.direction, ctx.merge = inputs
    ctx.save_for_backward(*tensors)


def _vjp(ctx, dy):
    tensors = S4dTensors(*ctx.saved_tensors)
    needs = ops.needed(ctx, S4dTensors._fields)
    *gradients, _y = ops.call(s4d_backward, _S4dBackward, (dy, *tensors), ctx.direction, ctx.merge, needs)
    return *ops.only_needed(gradients, needs), None, None


torch.library.register_autograd("ssmvdm::s4d_forward", _vjp, setup_context=_setup, lib=_library)
torch.library.register_autograd("ssmvdm::s4d_backward", ops.refuse_second_derivative, lib=_library)
for _operator in (s4d_forward, s4d_backward):
    torch.library.register_vmap(_operator, ops.sample_by_sample(_operator), lib=_library)

_S4d = ops.function_of(s4d_forward, _setup, _vjp)
_S4dBackward = ops.function_of(s4d_backward, ops.save_nothing, ops.refuse_second_derivative)


def s4d(tensors: S4dTensors, direction: int, merge: int) -> Tensor:
    """`s4d_forward` as the backends call it."""
    return ops.call(s4d_forward, _S4d, tensors, direction, merge)
