"""The tree as kernel-builder takes it: relative imports, a full description of the build, and a build that loads."""

from __future__ import annotations

import ast
import os
import shutil
import subprocess
import sys
import sysconfig
import textwrap
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
PACKAGE = ROOT / "torch-ext" / "ssmvdm_kernels"
# What the format (edition 5) allows in each table that is used here.
GENERAL = {"name", "version", "edition", "license", "upstream", "source", "backends", "cuda", "hub", "python-depends"}
TORCH = {"include", "minver", "maxver", "pyext", "src", "stable-abi", "cxx-flags"}
CUDA_KERNEL = {
    "backend", "cuda-capabilities", "cuda-flags", "cuda-minver", "cxx-flags", "depends", "include", "src",
}  # fmt: skip
# What kernel-builder writes beside torch_binding.cpp, as far as this build needs it.
REGISTRATION = """
#include <Python.h>
#define JOINED(A, B) A##B
#define JOIN(A, B) JOINED(A, B)
#define TEXT(A) #A
#define NAME_OF(A) TEXT(A)
#define REGISTER_EXTENSION(NAME)                                                                       \\
  PyMODINIT_FUNC JOIN(PyInit_, NAME)() {                                                               \\
    static struct PyModuleDef module = {PyModuleDef_HEAD_INIT, NAME_OF(NAME), nullptr, 0, nullptr};    \\
    return PyModule_Create(&module);                                                                   \\
  }
"""


@pytest.fixture(scope="module")
def description() -> dict:
    tomllib = pytest.importorskip("tomllib", reason="Python 3.10 has no reader of TOML")
    return tomllib.loads((ROOT / "build.toml").read_text())


def test_the_package_imports_itself_relatively_and_little_else():
    allowed = {*sys.stdlib_module_names, "torch", "triton"}
    for path in PACKAGE.rglob("*.py"):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.ImportFrom) and node.level == 0:
                names = [node.module]
            elif isinstance(node, ast.Import):
                names = [alias.name for alias in node.names]
            else:
                continue
            others = {name.partition(".")[0] for name in names} - allowed
            assert not others, f"{path.relative_to(PACKAGE)}:{node.lineno} imports {others}"


def test_the_description_keeps_to_the_format(description):
    assert set(description) == {"general", "torch", "kernel"}
    general, torch_part = description["general"], description["torch"]
    assert set(general) <= GENERAL and set(torch_part) <= TORCH
    assert general["edition"] == 5 and isinstance(general["version"], int) and general["backends"] == ["cpu", "cuda"]
    assert general["name"].replace("-", "_") == PACKAGE.name and PACKAGE.joinpath("__init__.py").exists()
    assert set(torch_part["stable-abi"]) == set(general["backends"])
    for kernel in description["kernel"].values():
        assert set(kernel) <= CUDA_KERNEL and kernel["backend"] == "cuda" and kernel["depends"] == ["torch"]
        assert f"-DSSMVDM_ARCHITECTURES={':'.join(kernel['cuda-capabilities'])}" in kernel["cxx-flags"]


@pytest.mark.slow
def test_the_description_lists_every_source(description):
    """Files of csrc/cuda belong to the CUDA kernels, all others to both variants."""
    native = {str(p.relative_to(ROOT)) for p in (ROOT / "csrc").rglob("*") if p.suffix in (".h", ".cuh", ".cpp", ".cu")}
    for_cuda = {name for name in native if name.startswith("csrc/cuda/")}
    listed = description["torch"]["src"]
    (kernel,) = description["kernel"].values()
    assert len(listed) == len(set(listed)) and len(kernel["src"]) == len(set(kernel["src"]))
    assert set(listed) - {"torch-ext/torch_binding.cpp"} == native - for_cuda
    assert for_cuda <= set(kernel["src"]) <= for_cuda | {name for name in native if name.endswith(".h")}


def build(description: dict, folder: Path, unique: str) -> None:
    """The CPU variant as kernel-builder makes it: only listed files, its definitions, its name; then its Python."""
    import torch
    from torch.utils.cpp_extension import include_paths

    source, objects = folder / "source", folder / "objects"
    objects.mkdir(parents=True)
    for name in description["torch"]["src"]:
        target = source / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / name, target)
    (source / "torch-ext" / "registration.h").write_text(REGISTRATION)
    options = [*description["torch"]["cxx-flags"], f"-DTORCH_EXTENSION_NAME={unique}", "-DCPU_KERNEL"]
    options += ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DPy_LIMITED_API=0x03090000", "-O2", "-fPIC", "-w"]
    options += [f"-I{path}" for path in (*include_paths(), sysconfig.get_paths()["include"])]
    options += [f"-I{source / folder_name}" for folder_name in description["torch"]["include"]]
    compiled = []
    for number, name in enumerate(name for name in description["torch"]["src"] if name.endswith(".cpp")):
        compiled.append(objects / f"{number}.o")
        subprocess.run(["g++", *options, "-c", source / name, "-o", compiled[-1]], check=True)
    package = folder / unique
    shutil.copytree(PACKAGE, package, ignore=shutil.ignore_patterns("*.so", "__pycache__"))
    library = Path(torch.__file__).parent / "lib"
    command = ["g++", "-shared", *compiled, f"-L{library}", "-ltorch_cpu", "-lc10", "-ltorch"]
    subprocess.run([*command, "-o", package / f"{unique}.abi3.so"], check=True)
    (package / "_ops.py").write_text(f"import torch\nfrom . import {unique}\nops = torch.ops.{unique}\n")


@pytest.mark.slow
def test_a_build_loads_beside_the_installed_package(description, tmp_path):
    if shutil.which("g++") is None:
        pytest.skip("there is no g++")
    unique = "_ssmvdm_kernels_cpu_0123abc"
    build(description, tmp_path, unique)
    program = f"""
        import importlib.util, sys
        import torch
        from torch.utils._python_dispatch import TorchDispatchMode
        import ssmvdm_kernels as installed

        place = {str(tmp_path / unique)!r}
        spec = importlib.util.spec_from_file_location("from_the_hub", place + "/__init__.py")
        hub = sys.modules["from_the_hub"] = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(hub)
        assert "cpu" in hub.available_backends()

        class Namespaces(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, arguments=(), options=None):
                seen.add(function.namespace)
                return function(*arguments, **(options or {{}}))

        torch.manual_seed(0)
        u, delta = torch.randn(2, 4, 9, 3), torch.rand(2, 4, 9, 3)
        B = torch.randn(2, 5, 9, 3)
        A, D = -torch.rand(4, 5), torch.randn(4)
        results = []
        for package, namespace in ((hub, {unique!r}), (installed, "ssmvdm")):
            leaves = [tensor.clone().requires_grad_() for tensor in (u, delta, A, B)]
            seen = set()
            with Namespaces():
                y = package.bidirectional_selective_scan(*leaves, leaves[3], D, backend="cpu")
                results.append((y, *torch.autograd.grad(y.square().sum(), leaves)))
            assert seen - {{"aten"}} == {{namespace}}, seen
        for one, other in zip(*results, strict=True):
            torch.testing.assert_close(one, other)
        mixer = hub.BidirectionalMamba(4)
        mixer(u).sum().backward()
    """
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    result = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(program)], capture_output=True, text=True, cwd=tmp_path, env=environment
    )
    assert result.returncode == 0, result.stderr
