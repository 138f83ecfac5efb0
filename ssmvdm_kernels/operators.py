"""Operators of PyTorch made of the formulas in ops.py and ops_s4d.py, in any number of namespaces.

The schemas are defined in Python, so that tracing, meta tensors and FakeTensorMode work on a machine where the compiled
kernels are missing; whoever has kernels registers them in a namespace, for the device that they run on.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import extensions
from .ops import CONV1D, SCAN, ConvTensors, Formula, ScanTensors
from .ops_s4d import S4D, S4dTensors
from .validation import is_forward_mode

NO_FORWARD_MODE = (
    "ssmvdm: the compiled kernels have no forward-mode derivatives (jvp, jacfwd, hessian, dual numbers). Call the "
    "function with backend='reference', or use reverse mode."
)


class Operators:
    """The operators `torch.ops.<namespace>.*` with shapes, derivatives and vmap, as long as this object lives.

    `scan`, `conv1d` and `s4d` are the forward operators as the backends call them, differentiable. The attributes that
    end in `_forward` and `_backward` are the operators themselves.
    """

    def __init__(self, namespace: str) -> None:
        self._library = torch.library.Library(namespace, "DEF")
        self.scan_forward, self.scan_backward, self._scan = self._define(SCAN)
        self.conv1d_forward, self.conv1d_backward, self._conv1d = self._define(CONV1D)
        self.s4d_forward, self.s4d_backward, self._s4d = self._define(S4D)

    def scan(
        self, tensors: ScanTensors, direction: int, merge: int, delta_softplus: bool, return_last_state: bool
    ) -> tuple[Tensor, Tensor]:
        return self._scan(tensors, direction, merge, delta_softplus, return_last_state)

    def conv1d(self, tensors: ConvTensors, direction: int, silu: bool) -> tuple[Tensor, Tensor]:
        return self._conv1d(tensors, direction, silu)

    def s4d(self, tensors: S4dTensors, direction: int, merge: int) -> Tensor:
        return self._s4d(tensors, direction, merge)

    def _define(self, formula: Formula):
        """(forward operator, backward operator, what calls the former differentiably)."""
        forward = self._operator(f"{formula.name}_forward", formula.forward, formula.forward_shapes)
        backward = self._operator(f"{formula.name}_backward", formula.backward, formula.backward_shapes)
        call_backward = differentiable(backward, _save_nothing, _refuse_second_derivative)

        def vjp(ctx, *gradients):
            return formula.vjp(ctx, call_backward, *gradients)

        torch.library.register_autograd(forward, vjp, setup_context=formula.setup, lib=self._library)
        torch.library.register_autograd(backward, _refuse_second_derivative, lib=self._library)
        return forward, backward, differentiable(forward, formula.setup, vjp)

    def _operator(self, name: str, schema: str, shapes: Callable) -> torch._ops.OpOverload:
        tags = (torch.Tag.pt2_compliant_tag, torch.Tag.needs_exact_strides)
        self._library.define(name + schema, tags=tags)
        operator = getattr(getattr(torch.ops, self._library.ns), name).default
        torch.library.register_fake(operator, shapes, lib=self._library)
        torch.library.register_vmap(operator, sample_by_sample(operator), lib=self._library)
        return operator


def differentiable(operator: torch._ops.OpOverload, setup: Callable, vjp: Callable) -> Callable:
    """The operator as a function of (tensors, *options), with the formulas registered for it once more as a plain
    autograd function.

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
        def jvp(ctx, *tangents):
            raise NotImplementedError(NO_FORWARD_MODE)

        @staticmethod
        def vmap(info, in_dims, *arguments):
            return sample_by_sample(Function.apply)(info, in_dims, *arguments)

    def call(tensors, *options):
        _refuse_forward_mode(tensors)
        if torch.compiler.is_compiling():
            return operator(*tensors, *options)
        if torch.is_grad_enabled() and any(tensor is not None and tensor.requires_grad for tensor in tensors):
            return Function.apply(*tensors, *options)
        return operator(*tensors, *options)

    return call


def sample_by_sample(operator: Callable) -> Callable:
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


def _save_nothing(ctx, inputs, output):
    pass


def _refuse_second_derivative(ctx, *gradients):
    raise NotImplementedError(
        "ssmvdm: the compiled kernels have first derivatives only, and this asks for a derivative of one of them. "
        "Call the function with backend='reference', which can be differentiated twice."
    )


def _refuse_forward_mode(tensors: tuple[Tensor | None, ...]) -> None:
    """Forward-mode derivatives: PyTorch would take a custom operator for a constant and return zeros in silence."""
    if not is_forward_mode():
        return
    if any(t is not None and forward_ad.unpack_dual(t).tangent is not None for t in tensors):
        raise NotImplementedError(NO_FORWARD_MODE)


COMPILED = Operators(extensions.namespace.name)  # of the extension libraries, for the CPU and for CUDA
