"""The operators `ssmvdm::*` as PyTorch sees them: schemas, output shapes, derivatives, vmap. No arithmetic is here.

The schemas are defined in Python, so that tracing, meta tensors and FakeTensorMode work on a machine where the
compiled kernels are missing; the extension libraries only add kernels for their device. All operators are
functional: they change no input, and no output shares memory with an input.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor
from torch.autograd import forward_ad

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


# -- schemas -----------------------------------------------------------------------------------------------------------

_SCAN_ARGUMENTS = (
    "Tensor u, Tensor delta, Tensor A, Tensor B, Tensor C, Tensor? D, Tensor? z, Tensor? delta_bias, "
    "Tensor? u_b, Tensor? delta_b, Tensor? A_b, Tensor? B_b, Tensor? C_b, Tensor? D_b, Tensor? delta_bias_b, "
    "Tensor? initial_state"
)
_CONV_ARGUMENTS = "Tensor x, Tensor weight, Tensor? bias, Tensor? weight_b, Tensor? bias_b"
TAGS = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)

_library = torch.library.Library("ssmvdm", "DEF")


def gradients_of(names: tuple[str, ...], *more: str) -> str:
    return "(" + ", ".join(f"Tensor {name}" for name in (*(f"d{name}" for name in names), *more)) + ")"


_library.define(
    f"scan_forward({_SCAN_ARGUMENTS}, int direction, int merge, bool delta_softplus, bool return_last_state)"
    " -> (Tensor y, Tensor last_state)",
    tags=TAGS,
)
_library.define(
    f"scan_backward(Tensor dy, Tensor? dlast_state, {_SCAN_ARGUMENTS}, int direction, int merge, bool delta_softplus,"
    f" int needs) -> {gradients_of(ScanTensors._fields, 'y')}",
    tags=TAGS,
)
_library.define(
    f"conv1d_forward({_CONV_ARGUMENTS}, int direction, bool silu) -> (Tensor y, Tensor y_b)",
    tags=TAGS,
)
_library.define(
    f"conv1d_backward(Tensor dy, Tensor dy_b, {_CONV_ARGUMENTS}, int direction, bool silu, int needs)"
    f" -> {gradients_of(ConvTensors._fields)}",
    tags=TAGS,
)

scan_forward = torch.ops.ssmvdm.scan_forward.default
scan_backward = torch.ops.ssmvdm.scan_backward.default
conv1d_forward = torch.ops.ssmvdm.conv1d_forward.default
conv1d_backward = torch.ops.ssmvdm.conv1d_backward.default


# -- shapes (also what runs on meta tensors) ---------------------------------------------------------------------------


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


@torch.library.register_fake("ssmvdm::scan_forward", lib=_library)
def _scan_forward_shapes(*arguments):
    *tensors, direction, merge, _, return_last_state = arguments
    tensors = ScanTensors(*tensors)
    batch, channels, _, *lanes = tensors.u.shape
    y = dense_like(tensors.u, output_shape(tensors.u, direction, merge))
    states = tensors.A.shape[1]
    last_state = tensors.A.new_empty((batch, channels, states, *lanes) if return_last_state else (0,))
    return y, last_state


@torch.library.register_fake("ssmvdm::scan_backward", lib=_library)
def _scan_backward_shapes(dy, dlast_state, *arguments):
    *tensors, direction, merge, _delta_softplus, needs = arguments
    sequences = ("u", "delta", "B", "C", "z", "u_b", "delta_b", "B_b", "C_b")
    gradients = gradient_shapes(tensors, needs, sequences, ScanTensors._fields)
    u = tensors[0]
    y = dense_like(u, output_shape(u, direction, merge)) if needs & NEEDS_Y else u.new_empty((0,))
    return *gradients, y


@torch.library.register_fake("ssmvdm::conv1d_forward", lib=_library)
def _conv1d_forward_shapes(x, weight, bias, weight_b, bias_b, direction, silu):
    nothing = (0,)
    y = dense_like(x) if direction != REVERSE else x.new_empty(nothing)
    y_b = dense_like(x) if direction != FORWARD else x.new_empty(nothing)
    return y, y_b


@torch.library.register_fake("ssmvdm::conv1d_backward", lib=_library)
def _conv1d_backward_shapes(dy, dy_b, *arguments):
    *tensors, _direction, _silu, needs = arguments
    return gradient_shapes(tensors, needs, ("x",), ConvTensors._fields)


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


def _scan_setup(ctx, inputs, output):
    *tensors, ctx.direction, ctx.merge, ctx.delta_softplus, ctx.return_last_state = inputs
    ctx.save_for_backward(*tensors)
    ctx.y_shape = output[0].shape
    ctx.set_materialize_grads(False)


def _scan_vjp(ctx, dy, dlast_state):
    tensors = ScanTensors(*ctx.saved_tensors)
    if not ctx.return_last_state:
        dlast_state = None  # compiled graphs pass a gradient for the (0,) placeholder
    needs = needed(ctx, ScanTensors._fields)
    if needs == 0 or (dy is None and dlast_state is None):
        return (None,) * (len(tensors) + 4)
    if dy is None:
        dy = _zeros_without_memory(tensors.u, ctx.y_shape)
    options = (ctx.direction, ctx.merge, ctx.delta_softplus, needs)
    *gradients, _y = call(scan_backward, _ScanBackward, (dy, dlast_state, *tensors), *options)
    return *only_needed(gradients, needs), None, None, None, None


def _conv1d_setup(ctx, inputs, output):
    *tensors, ctx.direction, ctx.silu = inputs
    ctx.save_for_backward(*tensors)
    ctx.shapes = tuple(out.shape for out in output)
    ctx.set_materialize_grads(False)


def _conv1d_vjp(ctx, *outgoing):
    tensors = ConvTensors(*ctx.saved_tensors)
    needs = needed(ctx, ConvTensors._fields)
    if needs == 0 or all(gradient is None for gradient in outgoing):
        return (None,) * (len(tensors) + 2)
    dy, dy_b = (
        _zeros_without_memory(tensors.x, shape) if gradient is None else gradient
        for gradient, shape in zip(outgoing, ctx.shapes, strict=True)
    )
    gradients = call(conv1d_backward, _Conv1dBackward, (dy, dy_b, *tensors), ctx.direction, ctx.silu, needs)
    return *only_needed(gradients, needs), None, None


def save_nothing(ctx, inputs, output):
    pass


def refuse_second_derivative(ctx, *gradients):
    raise NotImplementedError(
        "ssmvdm: the compiled kernels have first derivatives only, and this asks for a derivative of one of them. "
        "Call the function with backend='reference', which can be differentiated twice."
    )


def _refuse_forward_mode(tensors: ScanTensors | ConvTensors) -> None:
    """Forward-mode derivatives: PyTorch would take a custom operator for a constant and return zeros in silence."""
    if forward_ad._current_level < 0:
        return
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise NotImplementedError(
            "ssmvdm: the compiled kernels have no forward-mode derivatives (jvp, jacfwd, dual numbers). Call the "
            "function with backend='reference', or use reverse mode."
        )


torch.library.register_autograd("ssmvdm::scan_forward", _scan_vjp, setup_context=_scan_setup, lib=_library)
torch.library.register_autograd("ssmvdm::conv1d_forward", _conv1d_vjp, setup_context=_conv1d_setup, lib=_library)
torch.library.register_autograd("ssmvdm::scan_backward", refuse_second_derivative, lib=_library)
torch.library.register_autograd("ssmvdm::conv1d_backward", refuse_second_derivative, lib=_library)


# -- vmap --------------------------------------------------------------------------------------------------------------


def sample_by_sample(operator):
    """A vmap rule that calls the operator once per sample: right for every argument that may be mapped."""

    def rule(info, in_dims, *arguments):
        def evaluate(take):
            mapped = zip(arguments, in_dims, strict=True)
            return operator(*(argument if dim is None else take(argument, dim) for argument, dim in mapped))

        def sample(index: int):
            return evaluate(lambda argument, dim: argument.select(dim, index))

        if info.batch_size == 0:  # the sum over no sample has a sample's shape
            empty = evaluate(lambda argument, dim: argument.sum(dim))
            samples, join = [empty], lambda parts: parts[0].unsqueeze(0)[:0]
        else:
            samples, join = [sample(index) for index in range(info.batch_size)], torch.stack
        if isinstance(samples[0], Tensor):
            return join(samples), 0
        outputs = tuple(join(output) for output in zip(*samples, strict=True))
        return outputs, (0,) * len(outputs)

    return rule


for _operator in (scan_forward, scan_backward, conv1d_forward, conv1d_backward):
    torch.library.register_vmap(_operator, sample_by_sample(_operator), lib=_library)


# -- eager calls -------------------------------------------------------------------------------------------------------


def scan(
    tensors: ScanTensors, direction: int, merge: int, delta_softplus: bool, return_last_state: bool
) -> tuple[Tensor, Tensor]:
    """`scan_forward` as the backends call it."""
    return call(scan_forward, _Scan, tensors, direction, merge, delta_softplus, return_last_state)


def conv1d(tensors: ConvTensors, direction: int, silu: bool) -> tuple[Tensor, Tensor]:
    """`conv1d_forward` as the backends call it."""
    return call(conv1d_forward, _Conv1d, tensors, direction, silu)


def function_of(operator, setup, vjp) -> type[torch.autograd.Function]:
    """The formulas registered above once more, as a plain autograd function.

    PyTorch's wrapper of a registered formula asks the schema for its arguments again for each argument. With twenty
    that takes longer than a short scan. This way is quicker, and torch.func.grad works on it; compiled graphs do not
    pay the price and keep the operator.
    """

    class Function(torch.autograd.Function):
        @staticmethod
        def forward(*arguments):
            return operator(*arguments)

        @staticmethod
        def setup_context(ctx, inputs, output):
            setup(ctx, inputs, output)

        @staticmethod
        def backward(ctx, *gradients):
            return vjp(ctx, *gradients)

        @staticmethod
        def vmap(info, in_dims, *arguments):
            return sample_by_sample(Function.apply)(info, in_dims, *arguments)

    return Function


_Scan = function_of(scan_forward, _scan_setup, _scan_vjp)
_ScanBackward = function_of(scan_backward, save_nothing, refuse_second_derivative)
_Conv1d = function_of(conv1d_forward, _conv1d_setup, _conv1d_vjp)
_Conv1dBackward = function_of(conv1d_backward, save_nothing, refuse_second_derivative)


def call(operator, function, tensors, *options):
    _refuse_forward_mode(tensors)
    if torch.compiler.is_compiling():
        return operator(*tensors, *options)
    if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
        return function.apply(*tensors, *options)
    return operator(*tensors, *options)


# -- compiled kernels --------------------------------------------------------------------------------------------------


def load_extension(name: str) -> str | None:
    """Load the library `name` that lies in this package. Returns None, or a sentence saying why that failed."""
    candidates = [p for p in Path(__file__).parent.glob(f"{name}.*") if p.suffix in (".so", ".pyd", ".dylib")]
    if not candidates:
        return f"This installation has no compiled {name} extension."
    try:
        torch.ops.load_library(str(candidates[0]))
    except OSError as error:
        return f"The extension {candidates[0].name} cannot be loaded by torch {torch.__version__}: {error}."
    return None


cpu_extension_error = load_extension("_C")
