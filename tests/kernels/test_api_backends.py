"""The registry: what is listed, what is chosen, what is explained, and that nothing is replaced in silence."""

import os
import subprocess
import sys
import warnings

import pytest
import torch

from ssmvdm_kernels import available_backends, backends, explain, extensions, selective_scan

NAMES = ("cuda", "triton", "cpu", "reference")
NO_EXTENSION = "This installation has no compiled _C extension."


def call(backend="auto", device="cpu", dtype=torch.float32):
    u = torch.ones(1, 2, 3, device=device, dtype=dtype)
    A = torch.zeros(2, 1, device=device, dtype=torch.promote_types(dtype, torch.float32))
    one = torch.ones(1, 1, 3, device=device, dtype=dtype)
    return selective_scan(u, u, A, one, one, backend=backend)


@pytest.fixture
def without_extension(monkeypatch):
    """A machine on which the C++ kernels were not built, and nobody has been warned yet."""
    monkeypatch.setitem(extensions.problems, "_C", NO_EXTENSION)
    monkeypatch.setattr(backends, "_warned_of", set())
    monkeypatch.delenv("SSMVDM_STRICT", raising=False)


def test_only_what_works_is_listed():
    listed = available_backends()
    assert isinstance(listed, tuple) and set(listed) <= set(NAMES)
    assert listed[-1] == "reference"
    for name in listed:
        assert call(name, device="cuda" if name in ("cuda", "triton") else "cpu").shape == (1, 2, 3)


def test_the_list_follows_the_build(without_extension):
    assert available_backends() == ("reference",)


def test_missing_kernels_fall_back_with_one_warning_and_the_remedy(without_extension):
    with pytest.warns(RuntimeWarning, match=r"no compiled _C extension.*pip install.*backend='reference'"):
        y = call()
    assert torch.equal(y, call("reference"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        call()


@pytest.mark.parametrize("value", ["1", "true"])
def test_strict_makes_the_fallback_an_error(without_extension, monkeypatch, value):
    monkeypatch.setenv("SSMVDM_STRICT", value)
    with pytest.raises(RuntimeError, match=r"only the slow reference.*SSMVDM_STRICT"):
        call()
    assert call("reference").shape == (1, 2, 3)


@pytest.mark.parametrize("value", ["", "0"])
def test_strict_can_be_switched_off(without_extension, monkeypatch, value):
    monkeypatch.setenv("SSMVDM_STRICT", value)
    with pytest.warns(RuntimeWarning):
        call()


def test_a_named_backend_is_never_replaced(without_extension):
    with pytest.raises(ValueError, match=r"backend='cpu' cannot take this call\. .*no compiled _C extension"):
        call("cpu")


def test_a_backend_for_other_devices_says_so():
    with pytest.raises(ValueError, match=r"backend='cuda' cannot take this call\. It computes on CUDA"):
        call("cuda")


def test_meta_tensors_need_no_extension(without_extension):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert call(device="meta").device.type == "meta"


def test_explain_speaks_of_all_four():
    text = explain(torch.zeros(1, 2, 3))
    assert all(f"  {name}: " in text for name in NAMES)
    assert "float32 call on cpu" in text


def test_explain_names_what_auto_takes(without_extension):
    text = explain(torch.zeros(1, 2, 3), None, torch.zeros(2, 1), z=None, delta_softplus=True)
    assert "takes reference" in text and NO_EXTENSION in text


def test_explain_of_a_named_backend():
    assert "takes reference" in explain(torch.zeros(1, 2, 3), backend="reference")
    assert "is refused" in explain(torch.zeros(1, 2, 3), backend="triton")


def test_explain_follows_autocast():
    with torch.autocast("cpu", torch.bfloat16):
        assert explain(torch.zeros(1, 2, 3)).startswith("A bfloat16 call")


def test_explain_agrees_with_the_call():
    for name in NAMES:
        is_refused = "is refused" in explain(torch.zeros(1, 2, 3), backend=name)
        try:
            call(name)
        except ValueError:
            assert is_refused
        else:
            assert not is_refused


@pytest.mark.parametrize(
    "u",
    [
        torch.ones(1, 2, 3, dtype=torch.int32),
        torch.ones(3),
        torch.ones(1, 2, 3).to_sparse(),
        torch.nested.nested_tensor([torch.ones(2, 3)]),
        None,
    ],
    ids=["int32", "one dimension", "sparse", "nested", "None"],
)
def test_explain_raises_what_the_call_raises(u):
    with pytest.raises((TypeError, ValueError)) as refused:
        selective_scan(u, u, torch.zeros(2, 1), torch.ones(1, 1, 3), torch.ones(1, 1, 3))
    with pytest.raises(refused.type) as explained:
        explain(u)
    assert str(explained.value) == str(refused.value).replace("selective_scan:", "explain:")


def test_import_is_cheap_and_touches_no_device():
    program = (
        "import sys, torch, ssmvdm_kernels\n"
        "assert not torch.cuda.is_initialized()\n"
        "assert 'triton' not in sys.modules and 'torch._dynamo' not in sys.modules\n"
    )
    environment = os.environ | {"CUDA_VISIBLE_DEVICES": ""}
    subprocess.run([sys.executable, "-W", "error", "-c", program], check=True, env=environment, timeout=120)
