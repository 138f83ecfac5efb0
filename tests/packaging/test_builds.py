"""Real builds: the CUDA sources by nvcc where it is installed, and whole wheels from a copy of the source tree."""

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
COPIED = "setup.py pyproject.toml MANIFEST.in README.md LICENSE csrc ssmvdm ssmvdm_kernels benchmarks".split()


@pytest.fixture
def nvcc(build):
    found = build.find_nvcc(os.environ)
    if found is None:
        pytest.skip("nvcc is not installed")
    return found


@pytest.fixture
def source_tree(tmp_path):
    tree = tmp_path / "source"
    tree.mkdir()
    ignore = shutil.ignore_patterns("*.so", "*.pyd", "__pycache__", "results")
    for name in COPIED:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, tree / name, ignore=ignore)
        else:
            shutil.copy(ROOT / name, tree / name)
    return tree


def build_wheel(tree, **variables):
    """(wheel file, names in it, what the build printed)."""
    env = {key: value for key, value in os.environ.items() if key not in ("FORCE_CUDA", "SSMVDM_PURE_PYTHON")}
    command = [sys.executable, "setup.py", "-q", "bdist_wheel", "--dist-dir", "dist"]
    result = subprocess.run(command, cwd=tree, env=env | variables, capture_output=True, text=True, timeout=600)
    assert result.returncode == 0, result.stdout + result.stderr
    (wheel,) = (tree / "dist").glob("*.whl")
    return wheel, zipfile.ZipFile(wheel).namelist(), result.stdout + result.stderr


def test_only_what_a_change_affects_is_compiled_again(build, nvcc, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "ROOT", tmp_path)
    folder = tmp_path / "csrc/cuda"
    folder.mkdir(parents=True)
    (folder / "one.cu").write_text('#include "cuda/one.cuh"\nint one() { return kOne; }\n')
    (folder / "one.cuh").write_text("constexpr int kOne = 1;\n")
    (folder / "two.cu").write_text("int two() { return 2; }\n")

    def compiled():
        objects = build.compile_cuda(nvcc, ["9.0"], tmp_path / "build", os.environ)
        return {Path(file).stem: Path(file).stat().st_mtime_ns for file in objects}

    first = compiled()
    assert set(first) == {"one", "two"}
    assert compiled() == first
    (folder / "one.cuh").write_text("constexpr int kOne = 3;\n")
    second = compiled()
    assert second["one"] > first["one"] and second["two"] == first["two"]


def test_cuda_runtime_is_found(build, nvcc):
    folders = [Path(folder) for folder in build.cudart_folders(nvcc)]
    assert any(list(folder.glob("*cudart_static*")) for folder in folders)


@pytest.mark.slow
def test_wheel_with_kernels(source_tree):
    wheel, names, _ = build_wheel(source_tree, SSMVDM_SKIP_CUDA_BUILD="1")
    assert "-cp310-abi3-" in wheel.name
    assert [name for name in names if name.startswith("ssmvdm_kernels/_C")] == ["ssmvdm_kernels/_C.abi3.so"]
    assert not [name for name in names if name.startswith(("csrc", "tests", "benchmarks/results"))]


@pytest.mark.slow
def test_wheel_with_cuda(source_tree, nvcc):
    _, names, _ = build_wheel(source_tree, FORCE_CUDA="1", TORCH_CUDA_ARCH_LIST="9.0", SSMVDM_SKIP_CUDA_BUILD="")
    assert {"ssmvdm_kernels/_C.abi3.so", "ssmvdm_kernels/_C_cuda.abi3.so"} <= set(names)


@pytest.mark.parametrize("obstacle", [{"SSMVDM_PURE_PYTHON": "1"}, {"CXX": "no-such-compiler"}])
def test_wheel_where_nothing_can_be_compiled(source_tree, obstacle):
    wheel, names, printed = build_wheel(source_tree, **obstacle)
    assert wheel.name.endswith("-py3-none-any.whl")
    assert not [name for name in names if name.endswith(".so")]
    assert len([line for line in printed.splitlines() if line.startswith("ssmvdm-kernels:")]) == 1


@pytest.mark.slow
def test_a_failing_compile_still_installs_the_python_code(source_tree):
    (source_tree / "csrc/broken.cpp").write_text("this is not C++\n")
    _, names, printed = build_wheel(source_tree, SSMVDM_SKIP_CUDA_BUILD="1")
    assert not [name for name in names if name.endswith(".so")]
    assert "ssmvdm_kernels._C could not be compiled" in printed
