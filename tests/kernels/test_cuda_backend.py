"""When the CUDA backend takes a call, and in which words it declines; on any machine."""

import pytest
import torch
from torch._subclasses.fake_tensor import FakeTensorMode

from ssmvdm_kernels import available_backends, backends, explain, extensions
from ssmvdm_kernels.backends import cuda

NO_EXTENSION = "This installation has no compiled _C_cuda extension."


@pytest.fixture
def loaded(monkeypatch):
    """The library is there."""
    monkeypatch.setitem(extensions.problems, "_C_cuda", None)
    cuda._device_problem.cache_clear()
    yield monkeypatch
    cuda._device_problem.cache_clear()


@pytest.fixture
def machine(loaded):
    """A function that puts GPUs, by their compute capabilities, into this machine."""

    def build(*capabilities: tuple[int, int], compiled: str = "8.0:9.0+PTX"):
        loaded.setattr(torch.version, "cuda", "13.0")
        loaded.setattr(torch.cuda, "is_available", lambda: bool(capabilities))
        loaded.setattr(torch.cuda, "device_count", lambda: len(capabilities))
        loaded.setattr(torch.cuda, "get_device_capability", lambda index: capabilities[index])
        loaded.setattr(torch.cuda, "get_device_name", lambda index: f"GPU {index}")
        loaded.setattr(cuda, "built_architectures", lambda: compiled.split(":"))

    return build


def obstacles(device: str = "cuda:0", dtype: torch.dtype = torch.float32) -> list[str]:
    return backends.REGISTRY["cuda"].obstacles(torch.device(device), dtype)


@pytest.mark.parametrize(
    ("entry", "runs", "does_not"),
    [
        ("8.0", [(8, 0), (8, 6), (8, 9)], [(7, 5), (9, 0), (10, 0)]),
        ("8.6", [(8, 6), (8, 9)], [(8, 0), (9, 0)]),
        ("9.0+PTX", [(9, 0), (10, 0), (10, 3), (12, 0)], [(8, 9)]),
        ("9.0a", [(9, 0)], [(10, 0), (8, 0)]),
        ("9.0a+PTX", [(9, 0)], [(10, 0)]),
        ("10.0f", [(10, 0), (10, 3)], [(9, 0), (12, 0)]),
        ("10.0f+PTX", [(10, 3)], [(12, 0)]),
        ("12.0", [(12, 0), (12, 1)], [(10, 0)]),
    ],
)
def test_which_devices_run_code_for_an_architecture(entry, runs, does_not):
    assert [capability for capability in runs + does_not if cuda.covers(entry, capability)] == runs


def test_a_covered_device_has_no_obstacles(machine):
    machine((9, 0), (12, 0))
    assert obstacles("cuda:0") == obstacles("cuda:1", torch.bfloat16) == []
    assert "cuda" in available_backends()


def test_an_uncovered_device_is_named_with_the_remedy(machine):
    machine((8, 0), (7, 5))
    (problem,) = obstacles("cuda:1")
    assert "compiled for 8.0, 9.0+PTX, and GPU 1 has compute capability 7.5" in problem
    assert "TORCH_CUDA_ARCH_LIST=7.5" in problem
    assert "cuda" in available_backends()  # the other device runs it


def test_no_device_is_covered(machine):
    machine((7, 5))
    assert "GPU 0 has compute capability 7.5" in backends.missing("cuda")
    assert "cuda" not in available_backends()


def test_no_device(machine):
    machine()
    assert obstacles() == [backends.missing("cuda")] == ["PyTorch finds no CUDA device."]


def test_torch_without_cuda(loaded):
    loaded.setattr(torch.version, "cuda", None)
    assert obstacles() == [backends.missing("cuda")] == ["This PyTorch is built without CUDA."]


def test_no_library(monkeypatch):
    monkeypatch.setitem(extensions.problems, "_C_cuda", NO_EXTENSION)
    (problem,) = obstacles()
    assert problem == backends.missing("cuda")
    assert problem.startswith(NO_EXTENSION) and "pip install" in problem and "nvcc" in problem


def test_other_devices_and_float64_are_declined(machine):
    machine((9, 0))
    assert obstacles("cpu") == ["It computes on CUDA tensors, and these are on cpu."]
    (problem,) = obstacles(dtype=torch.float64)
    assert "these are float64" in problem


def test_cuda_tensors_take_it_first(machine):
    """Fake tensors have a device without there being one."""
    machine((9, 0))
    with FakeTensorMode():
        u = torch.empty(1, 2, 3, device="cuda:0")
        assert "takes cuda" in explain(u)
        assert backends.select("selective_scan", u, "auto") is backends.REGISTRY["cuda"]
        assert "takes cuda" not in explain(u.double())


def test_without_kernels_a_cuda_call_is_told_why(monkeypatch):
    monkeypatch.setitem(extensions.problems, "_C_cuda", NO_EXTENSION)
    monkeypatch.setattr(backends.REGISTRY["triton"], "obstacles", lambda device, dtype: ["There is no Triton."])
    monkeypatch.setattr(backends, "_warned_of", set())
    with (
        FakeTensorMode(),
        pytest.warns(RuntimeWarning, match="only the slow reference .* on cuda:0.*no compiled _C_cuda"),
    ):
        backends.select("selective_scan", torch.empty(1, 2, 3, device="cuda:0"), "auto")
