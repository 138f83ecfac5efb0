"""The package as it is installed: what importing does, the environment report, the parity check, the binaries."""

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import ssmvdm
import ssmvdm_kernels
from ssmvdm_kernels import check

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = Path(ssmvdm_kernels.__file__).parent
BINARIES = sorted(PACKAGE.glob("_C*.so"))
ONE_SCAN = """
import torch, ssmvdm_kernels
one = torch.ones(1, 2, 3)
y = ssmvdm_kernels.selective_scan(one, one, torch.zeros(2, 1), torch.ones(1, 1, 3), torch.ones(1, 1, 3))
assert y.tolist() == [[[1.0, 2.0, 3.0]] * 2], y
"""

needs_kernels = pytest.mark.skipif(
    "cpu" not in ssmvdm_kernels.available_backends(), reason="the C++ extension is not built here"
)


def run_python(*arguments, folder=ROOT, **variables):
    """A fresh interpreter that imports the package from `folder`."""
    env = {key: value for key, value in os.environ.items() if key != "SSMVDM_STRICT"}
    env |= {"PYTHONPATH": str(folder), **variables}
    return subprocess.run(
        [sys.executable, *arguments], cwd=folder, env=env, capture_output=True, text=True, timeout=300
    )


def has_absolute_path(text):
    return re.search(r"(?:^|[\s\"'(=:])(?:/\w|[A-Za-z]:\\)", text) is not None


@pytest.fixture
def without_kernels(tmp_path):
    """A folder with the package as the pure Python wheel installs it."""
    shutil.copytree(PACKAGE, tmp_path / PACKAGE.name, ignore=shutil.ignore_patterns("_C*", "__pycache__"))
    return tmp_path


# -- importing ---------------------------------------------------------------------------------------------------------


def test_one_version_everywhere():
    declared = re.search(r'^version = "(.+)"$', (ROOT / "pyproject.toml").read_text(), re.MULTILINE)[1]
    assert ssmvdm_kernels.__version__ == ssmvdm.__version__ == declared


@pytest.mark.parametrize("package", ["ssmvdm_kernels", "ssmvdm"])
def test_import_is_quiet_light_and_leaves_the_gpu_alone(package):
    heavy = ("matplotlib", "rich", "diffusers", "transformers", "pandas", "PIL", "pytest", "hypothesis")
    code = f"import sys, torch, {package}; print(torch.cuda.is_initialized(), [m for m in {heavy} if m in sys.modules])"
    result = run_python("-W", "error", "-c", code)
    assert (result.returncode, result.stdout.strip(), result.stderr) == (0, "False []", "")


def test_command_line_starts_with_the_base_dependencies_alone():
    block = "import sys; sys.modules.update(dict.fromkeys(['matplotlib', 'rich', 'PIL', 'diffusers', 'accelerate'])); "
    result = run_python("-c", block + "from ssmvdm.cli import main; main(['--help'])")
    assert result.returncode == 0, result.stderr
    assert "bench" in result.stdout


def test_without_kernels_the_reference_computes_and_says_the_remedy_once(without_kernels):
    result = run_python("-c", ONE_SCAN + ONE_SCAN, folder=without_kernels)
    assert result.returncode == 0, result.stderr
    assert result.stderr.count("RuntimeWarning") == 1
    assert "pip install --no-build-isolation" in result.stderr


def test_without_kernels_strict_is_an_error(without_kernels):
    result = run_python("-c", ONE_SCAN, folder=without_kernels, SSMVDM_STRICT="1")
    assert result.returncode != 0
    assert "SSMVDM_STRICT" in result.stderr.splitlines()[-1]


def test_a_library_that_cannot_be_loaded_leaves_the_package_usable(without_kernels):
    (without_kernels / PACKAGE.name / "_C.abi3.so").write_bytes(b"not a shared library")
    result = run_python("-c", ONE_SCAN, folder=without_kernels)
    assert result.returncode == 0, result.stderr
    assert "_C.abi3.so cannot be loaded" in result.stderr


@needs_kernels
def test_a_cuda_library_that_cannot_be_loaded_leaves_the_cpu_kernels_alone(without_kernels):
    shutil.copy(*PACKAGE.glob("_C.*"), without_kernels / PACKAGE.name)
    (without_kernels / PACKAGE.name / "_C_cuda.abi3.so").write_bytes(b"not a shared library")
    result = run_python("-W", "error", "-c", ONE_SCAN, folder=without_kernels, SSMVDM_STRICT="1")
    assert result.returncode == 0, result.stderr
    report = run_python("-m", "ssmvdm_kernels.info", "--json", folder=without_kernels)
    assert "_C_cuda.abi3.so cannot be loaded" in json.loads(report.stdout)["backends"]["cuda"]["reason"]


# -- python -m ssmvdm_kernels.info -------------------------------------------------------------------------------------


def test_info_json():
    result = run_python("-m", "ssmvdm_kernels.info", "--json")
    assert result.returncode == 0, result.stderr
    found = json.loads(result.stdout)
    assert not has_absolute_path(result.stdout)
    assert found["versions"]["ssmvdm_kernels"] == ssmvdm_kernels.__version__
    assert found["versions"]["torch"] == torch.__version__
    assert list(found["backends"]) == ["cuda", "triton", "cpu", "reference"]
    for entry in found["backends"].values():
        assert entry["is_available"] == (entry["reason"] is None)
    available = tuple(name for name, entry in found["backends"].items() if entry["is_available"])
    assert available == ssmvdm_kernels.available_backends()
    has_kernels = found["extensions"]["_C"]["problem"] is None
    assert (found["cpu"]["active_isa"] is not None) == has_kernels == ("cpu" in available)


def test_info_text_shows_every_backend():
    result = run_python("-m", "ssmvdm_kernels.info")
    assert result.returncode == 0, result.stderr
    assert not has_absolute_path(result.stdout)
    for name in ("cuda", "triton", "cpu", "reference"):
        assert re.search(rf"^  {name} +\S", result.stdout, re.MULTILINE)


def test_info_whose_reader_has_gone():
    reader, writer = os.pipe()
    os.close(reader)
    command = [sys.executable, "-m", "ssmvdm_kernels.info"]
    result = subprocess.run(command, cwd=ROOT, stdout=writer, stderr=subprocess.PIPE, text=True, timeout=300)
    os.close(writer)
    assert (result.returncode, result.stderr) == (0, "")


@pytest.mark.parametrize("broken", [False, True])
def test_info_without_kernels(without_kernels, broken):
    if broken:
        (without_kernels / PACKAGE.name / "_C.abi3.so").write_bytes(b"not a shared library")
    result = run_python("-m", "ssmvdm_kernels.info", "--json", folder=without_kernels)
    assert result.returncode == 0, result.stderr
    assert not has_absolute_path(result.stdout)
    found = json.loads(result.stdout)
    assert found["cpu"]["active_isa"] is None
    assert ("cannot be loaded" if broken else "no compiled _C") in found["backends"]["cpu"]["reason"]


# -- python -m ssmvdm_kernels.check ------------------------------------------------------------------------------------


@needs_kernels
def test_check_passes():
    result = run_python("-m", "ssmvdm_kernels.check")
    assert result.returncode == 0, result.stdout + result.stderr
    assert result.stdout.splitlines()[-1].startswith("All ")


def test_check_without_kernels_fails_and_says_why(without_kernels):
    result = run_python("-m", "ssmvdm_kernels.check", folder=without_kernels)
    assert result.returncode == 1
    assert "pip install --no-build-isolation" in result.stdout
    assert "Nothing was checked" in result.stdout


@pytest.mark.skipif(torch.cuda.is_available(), reason="Triton would compile for minutes")
def test_check_of_a_backend_that_does_not_run_here():
    result = run_python("-m", "ssmvdm_kernels.check", "--backend", "triton")
    assert (result.returncode, result.stdout) == (1, "Nothing was checked: no compiled backend runs here.\n")


DAMAGED = {
    "scan": ("y", "last_state", "du", "ddelta", "dA", "dB", "dC", "dD", "dz", "dinitial_state"),
    "s4d": ("y", "du", "ddecay", "dweight", "dD", "dz"),
}


@pytest.mark.parametrize("operator,name", [(operator, name) for operator in DAMAGED for name in DAMAGED[operator]])
@pytest.mark.parametrize("damage", ["value", "nan", "shape", "dtype"])
def test_check_sees_one_damaged_tensor(monkeypatch, operator, name, damage):
    clean = check.results

    def damaged(run, tensors, backend):
        found = clean(run, tensors, "reference")
        if backend == "damaged" and name in found:
            tensor = found[name].clone(memory_format=torch.contiguous_format)
            if damage == "value":
                tensor.view(-1)[7] += 1e-5 * tensor.abs().max()
            elif damage == "nan":
                tensor.view(-1)[7] = float("nan")
            found[name] = {"shape": tensor[:1], "dtype": tensor.double()}.get(damage, tensor)
        return found

    monkeypatch.setattr(check, "results", damaged)
    monkeypatch.setattr(check, "LAYOUTS", {"lanes": (2,)})
    monkeypatch.setattr(check, "SCAN_MODES", ("forward",))
    monkeypatch.setattr(check, "CONV_MODES", ())
    (row,) = (row for row in check.check_backend("damaged", "cpu", ("float32",)) if row.operator == operator)
    assert not row.has_passed
    assert name in (row.problem or row.where)


# -- binaries ----------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(shutil.which("nm") is None, reason="nm is not installed")
@pytest.mark.skipif(not BINARIES, reason="no extension is built here")
@pytest.mark.parametrize("binary", BINARIES, ids=lambda path: path.name)
def test_binaries_need_only_the_stable_abi(binary):
    """No C++ symbol of torch, which changes from version to version, and nothing of the Python C API."""
    symbols = subprocess.run(
        ["nm", "-D", "--undefined-only", binary], capture_output=True, text=True, check=True
    ).stdout
    names = [line.split()[-1] for line in symbols.splitlines()]
    assert any(name.startswith(("aoti_torch_", "torch_")) for name in names)
    assert [name for name in names if re.match(r"_ZN?K?(2at|3c10|5torch|5caffe)|_?Py[A-Z_]", name)] == []
