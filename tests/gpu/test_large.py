"""Sizes that only a GPU's memory holds, and on any machine that the check of them would notice a wrong copy."""

from __future__ import annotations

import dataclasses

import pytest
import torch

from tests.conftest import require_backend
from tests.kernels.cases import Case

from . import large
from .device import each_backend, needs_gpu, require_memory
from .large import Large

# The few are so many that kernels make one slice of the channels for them too: dB and dC of every copy are summed in
# the same order.
VIDEO = Case(dtype=torch.bfloat16, separate="parameters", batch=1, channels=64, length=16, states=16, lanes=(2**14,))
CLASSIC = dataclasses.replace(VIDEO, channels=224, batch=2**10, lanes=())
CHANNELS = dataclasses.replace(CLASSIC, layout="channels")
TWO_TO_31, TWO_TO_32 = 2**31, 2**32


def beyond(few: Case, elements: int, is_forward_only: bool = False) -> Large:
    """The fewest copies that have more than so many elements."""
    one = Large(few, 1).elements
    return Large(few, elements // one + 1, is_forward_only)


SHAPES = {
    "video beyond 2^31": beyond(VIDEO, TWO_TO_31),
    "video beyond 2^32, forward": beyond(VIDEO, TWO_TO_32, True),
    "channels-last beyond 2^31": beyond(CHANNELS, TWO_TO_31),
    "length-contiguous beyond 2^31": beyond(CLASSIC, TWO_TO_31),
    "a million sequences": Large(dataclasses.replace(CHANNELS, channels=8), 2**10),
    "a million pixels": Large(dataclasses.replace(VIDEO, channels=8), 2**6),
}


class TestOnTheDevice:
    pytestmark = needs_gpu

    @each_backend
    @pytest.mark.parametrize("shape", SHAPES)
    def test_every_copy_has_the_bits_of_the_few(self, shape, name):
        backend = require_backend(name)
        require_memory(SHAPES[shape].nbytes())
        large.check(SHAPES[shape], backend, "cuda")


def test_the_shapes_are_as_large_as_they_say():
    elements = [shape.elements for shape in SHAPES.values()]
    assert min(elements[0], elements[2], elements[3]) > TWO_TO_31
    assert elements[1] > TWO_TO_32
    sequences = [shape.copies * shape.few.batch * (shape.few.lanes or (1,))[0] for shape in SHAPES.values()]
    assert min(sequences[-2:]) == 2**20 and min(sequences) > 65_536


SMALL = [
    Case(dtype=torch.bfloat16, separate="parameters", batch=batch, channels=5, lanes=lanes, layout=layout)
    for batch, lanes, layout in ((1, (6,), "lanes"), (3, (), "length"), (3, (), "channels"))
]


@pytest.mark.parametrize("few", SMALL, ids=lambda case: case.layout)
def test_the_check_itself(few, monkeypatch):
    """It passes on the CPU, in the layout that is meant, and notices one wrong element of one copy."""
    backend = require_backend("cpu")
    shape = Large(few, 4)
    large.check(shape, backend, "cpu")
    u = few.inputs()["u"]
    many = shape.repeated(u)
    assert many.numel() == shape.elements
    assert torch.equal(many.narrow(shape.axis, 0, u.shape[shape.axis]), u)
    assert list(many.stride()).index(1) == u.stride().index(1)

    right = large.run

    def wrong(tensors, parameters, backend, dy):
        found = right(tensors, parameters, backend, dy)
        if found["y"].numel() == shape.elements:
            found["dz"][(-1,) * found["dz"].dim()] += 1
        return found

    monkeypatch.setattr(large, "run", wrong)
    with pytest.raises(AssertionError, match="dz: copy 3 of 4"):
        large.check(shape, backend, "cpu")
