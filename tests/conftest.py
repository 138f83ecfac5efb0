"""What all tests share: which backends run here, a state that each test finds as it was, one command per failure."""

from __future__ import annotations

import importlib.util
import os
import random
import shlex

import numpy as np
import pytest
import torch

import ssmvdm_kernels
from ssmvdm_kernels import explain

# The GPU backends join where a GPU is; elsewhere their tests would only be skips.
GPU_BACKENDS = ("cuda", "triton") if torch.cuda.is_available() else ()
COMPILED_BACKENDS = ("cpu", *GPU_BACKENDS)

collect_ignore = []
if importlib.util.find_spec("hypothesis") is None:
    # A machine with a GPU and no network may have torch and pytest alone.
    collect_ignore.append("kernels/test_properties.py")
else:
    from hypothesis import HealthCheck, settings

    # The same examples in every run, which costs and proves the same; `--hypothesis-profile=search` looks for others.
    _untimed = {"deadline": None, "suppress_health_check": (HealthCheck.too_slow, HealthCheck.function_scoped_fixture)}
    settings.register_profile("suite", max_examples=200, derandomize=True, database=None, **_untimed)
    settings.register_profile("search", max_examples=5000, database=None, **_untimed)
    settings.load_profile("suite")


def require_backend(name: str) -> str:
    """Skip, saying why, where a backend is not built; in CI that is a failure."""
    if name in ssmvdm_kernels.available_backends():
        return name
    device = "cuda" if name in GPU_BACKENDS else "cpu"
    reason = f"backend {name!r} does not run here: {explain(torch.empty(0, 0, 0, device=device), backend=name)}"
    if os.environ.get("CI", "").lower() in ("1", "true", "yes"):
        pytest.fail(f"{reason}\nCI runs with every backend built.", pytrace=False)
    pytest.skip(reason)


@pytest.fixture(params=("reference", *COMPILED_BACKENDS))
def backend(request) -> str:
    """Every backend, the specification among them."""
    return require_backend(request.param)


@pytest.fixture(params=COMPILED_BACKENDS)
def compiled_backend(request) -> str:
    """Every backend with kernels of its own."""
    return require_backend(request.param)


@pytest.fixture(autouse=True)
def _same_state_for_every_test():
    """Seeds before; threads, determinism switches and default dtype put back after."""
    random.seed(0)
    np.random.seed(0)
    torch.manual_seed(0)
    threads = torch.get_num_threads()
    deterministic = torch.are_deterministic_algorithms_enabled()
    fill = torch.utils.deterministic.fill_uninitialized_memory
    dtype = torch.get_default_dtype()
    yield
    if torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    torch.use_deterministic_algorithms(deterministic)
    torch.utils.deterministic.fill_uninitialized_memory = fill
    torch.set_default_dtype(dtype)


@pytest.hookimpl(hookwrapper=True)
def pytest_runtest_makereport(item, call):
    """A failure ends with the one command that repeats it."""
    outcome = yield
    report = outcome.get_result()
    if report.failed:
        report.sections.append(("To repeat", f"python -m pytest {shlex.quote(item.nodeid)}"))
