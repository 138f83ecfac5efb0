"""What a measurement that raised is called."""

import pytest
import torch

from benchmarks.measure.failures import failure

NO_MEMORY = [
    MemoryError(),
    torch.OutOfMemoryError("CUDA out of memory"),
    RuntimeError("[enforce fail] DefaultCPUAllocator: can't allocate memory: you tried to allocate 64 bytes"),
    RuntimeError("could not create a primitive"),
    RuntimeError("std::bad_alloc"),
    RuntimeError("aoti_torch_empty_strided( sizes, strides ) API call failed at ./csrc/tensors.h, line 98"),
]


@pytest.mark.parametrize("error", NO_MEMORY, ids=str)
def test_whatever_has_no_memory_left_is_out_of_memory(error):
    found = failure(error)
    assert found["status"] == "out of memory"
    assert found["detail"].startswith("an allocation failed: ")


def test_other_errors_have_their_own_names(capsys):
    assert failure(NotImplementedError("no gradient")) == {"status": "not applicable", "detail": "no gradient"}
    assert failure(RuntimeError("shapes differ\nby one")) == {
        "status": "error",
        "detail": "RuntimeError: shapes differ",
    }
    assert "RuntimeError: shapes differ" in capsys.readouterr().err
