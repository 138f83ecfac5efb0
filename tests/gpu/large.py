"""Calls of many sequences whose right result is known: a few sequences, repeated.

Sequences do not see each other, so every copy must have the bits of the few. That reaches any size without a truth of
that size, and an offset that wraps around lands on another sequence or outside the tensor.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from ssmvdm_kernels import bidirectional_selective_scan
from tests.kernels.cases import Case
from tests.kernels.checks import bits

SEQUENCES = ("u", "delta", "B", "C", "z")


@dataclass(frozen=True)
class Large:
    """few: the case whose sequences are repeated `copies` times along its first axis, or along its lanes if it has
    some. is_forward_only: without gradients."""

    few: Case
    copies: int
    is_forward_only: bool = False

    @property
    def axis(self) -> int:
        return 3 if self.few.lanes else 0

    @property
    def elements(self) -> int:
        """Of u."""
        case = self.few
        return self.copies * case.batch * case.channels * case.length * math.prod(case.lanes)

    def nbytes(self) -> int:
        """Device memory that a run takes at most: the inputs and y, and for backward dy, the gradients and states every
        few steps in float32."""
        tensors = 5 if self.is_forward_only else 12
        return tensors * self.elements * self.few.dtype.itemsize

    def repeated(self, x: Tensor) -> Tensor:
        """In real memory, in the layout of the few."""
        counts = [1] * x.dim()
        counts[self.axis if x.dim() > 3 or self.axis == 0 else 2] = self.copies
        if self.few.layout == "channels":
            return x.transpose(1, -1).repeat(*_swapped(counts)).transpose(1, -1)
        return x.repeat(*counts)


def _swapped(counts: list[int]) -> list[int]:
    counts[1], counts[-1] = counts[-1], counts[1]
    return counts


def run(tensors: dict[str, Tensor], parameters: dict[str, Tensor], backend: str, dy: Tensor | None) -> dict:
    """y and, if dy is given, the gradients of the sequences."""
    leaves = {name: x.detach().requires_grad_(dy is not None) for name, x in tensors.items()}
    y = bidirectional_selective_scan(**leaves, **parameters, delta_softplus=True, backend=backend)
    found = {"y": y.detach()}
    if dy is not None:
        gradients = torch.autograd.grad(y, list(leaves.values()), dy)
        found |= {f"d{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    return found


def check(large: Large, backend: str, device: str) -> None:
    """AssertionError with the first copy that differs from the few."""
    inputs = {name: x for name, x in large.few.inputs(device).items() if x is not None}
    sequences = {name: inputs.pop(name) for name in SEQUENCES if name in inputs}
    dy = None if large.is_forward_only else large.few.output_gradients(device)[0]
    wanted = run(sequences, inputs, backend, dy)
    whole = {name: large.repeated(x) for name, x in sequences.items()}
    found = run(whole, inputs, backend, None if dy is None else large.repeated(dy))
    for name, value in found.items():
        few = bits(wanted[name])
        length = few.shape[large.axis]
        for copy in range(large.copies):
            own = bits(value.narrow(large.axis, copy * length, length))
            assert torch.equal(own, few), (
                f"{name}: copy {copy} of {large.copies} differs in {int((own != few).sum())} of {few.numel()} elements"
            )
