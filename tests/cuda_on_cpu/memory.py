"""Arrays placed so that a kernel's misuse of memory shows.

Around and between the elements of every array lie bytes 0xff: NaN in every type, so that what is read by mistake
reaches a result, and known, so that what is written by mistake is found. Outputs hold them too until they are written.
With fence 0 an array ends where its memory ends, which is what AddressSanitizer guards.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

FENCE = 64  # elements; a multiple of every vector that a kernel loads
ALIGNMENT = 16  # bytes: what malloc gives, and the largest vector


def span_of(shape: tuple[int, ...], strides: tuple[int, ...]) -> int:
    """Elements from the first to the last, both included; strides in elements."""
    if 0 in shape:
        return 0
    return 1 + sum((size - 1) * stride for size, stride in zip(shape, strides, strict=True))


def element_strides(x: np.ndarray) -> tuple[int, ...]:
    return tuple(stride // x.itemsize for stride in x.strides)


def elements(memory: np.ndarray, offset: int, shape: tuple[int, ...], strides: tuple[int, ...]) -> np.ndarray:
    """A view of flat memory; strides in elements."""
    size = memory.itemsize
    return np.lib.stride_tricks.as_strided(memory[offset:], shape, tuple(stride * size for stride in strides))


def dense_strides(like: tuple[int, ...], shape: tuple[int, ...]) -> tuple[int, ...]:
    """Of a dense array with its axes in the order of the strides `like`, largest first, as the binding allocates."""
    order = sorted(range(len(shape)), key=lambda axis: -like[axis])
    strides, step = [0] * len(shape), 1
    for axis in reversed(order):
        strides[axis] = step
        step *= max(shape[axis], 1)
    return tuple(strides)


@dataclass
class Fenced:
    """One array in memory of its own."""

    name: str
    memory: np.ndarray  # flat, all of it
    view: np.ndarray
    is_element: np.ndarray  # of `memory`: belongs to the array
    before: np.ndarray | None  # of an input: all of `memory` as it was

    def problem(self) -> str | None:
        """What has happened to this array that must not."""
        bits = as_bits(self.memory)
        if self.before is not None:
            return None if np.array_equal(bits, self.before) else f"{self.name} or memory beside it was written"
        unwritten = bits == np.iinfo(bits.dtype).max
        if not unwritten[~self.is_element].all():
            return f"memory beside {self.name} was written"
        if unwritten[self.is_element].any():
            place = np.argwhere(as_bits(np.ascontiguousarray(self.view)) == np.iinfo(bits.dtype).max)[0]
            return f"{self.name}{[int(i) for i in place]} was never written"
        return None


@dataclass
class Memory:
    """All arrays of one call. `fence` counts elements."""

    fence: int
    arrays: list[Fenced] = field(default_factory=list)

    def input(self, name: str, x: np.ndarray | None) -> np.ndarray | None:
        """A copy with the same strides and the same alignment."""
        if x is None:
            return None
        shift = x.ctypes.data % ALIGNMENT // x.itemsize
        placed = self._allocate(name, x.shape, element_strides(x), x.dtype, shift)
        placed.view[...] = x
        placed.before = as_bits(placed.memory).copy()
        return placed.view

    def output(self, name: str, shape: tuple[int, ...], dtype, like: tuple[int, ...] | None = None) -> np.ndarray:
        """Not yet written; dense in the order of the strides `like`, or contiguous."""
        strides = dense_strides(like or tuple(range(len(shape), 0, -1)), shape)
        return self._allocate(name, shape, strides, np.dtype(dtype), 0).view

    def problems(self) -> list[str]:
        return [problem for array in self.arrays if (problem := array.problem())]

    def _allocate(self, name, shape, strides, dtype, shift) -> Fenced:
        begin = shift + self.fence
        memory = np.empty(begin + span_of(shape, strides) + self.fence, dtype)
        memory.view(np.uint8)[:] = 0xFF
        is_element = np.zeros(memory.shape, bool)
        elements(is_element, begin, shape, strides)[...] = True
        self.arrays.append(Fenced(name, memory, elements(memory, begin, shape, strides), is_element, None))
        return self.arrays[-1]


def as_bits(x: np.ndarray) -> np.ndarray:
    return x.view({2: np.uint16, 4: np.uint32}[x.itemsize])
