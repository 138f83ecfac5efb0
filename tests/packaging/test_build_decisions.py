"""What setup.py decides to build, from what the machine offers and what the environment asks for."""

import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

SUPPORTED_BY_NVCC_13 = ["sm_75", "sm_80", "sm_90", "sm_100", "sm_120"]


def tools(build, torch_problem=None, torch_cuda=None, cxx_problem=None, nvcc=None):
    return build.Toolchain(torch_problem, torch_cuda, cxx_problem, nvcc)


@pytest.mark.parametrize(
    ("offers", "env", "cpu", "cuda"),
    [
        ({}, {}, True, False),
        ({"nvcc": "nvcc"}, {}, True, False),
        ({"torch_cuda": "13.0"}, {}, True, False),
        ({"torch_cuda": "13.0", "nvcc": "nvcc"}, {}, True, True),
        ({"torch_cuda": "13.0", "nvcc": "nvcc"}, {"SSMVDM_SKIP_CUDA_BUILD": "1"}, True, False),
        ({"torch_cuda": "13.0", "nvcc": "nvcc"}, {"SSMVDM_SKIP_CUDA_BUILD": "0"}, True, True),
        ({"torch_cuda": "13.0", "nvcc": "nvcc"}, {"SSMVDM_PURE_PYTHON": "1"}, False, False),
        ({"nvcc": "nvcc"}, {"FORCE_CUDA": "1"}, True, True),
        ({"nvcc": "nvcc"}, {"FORCE_CUDA": "0"}, True, False),
        ({"torch_problem": "no torch"}, {}, False, False),
        ({"cxx_problem": "no compiler", "torch_cuda": "13.0", "nvcc": "nvcc"}, {}, False, False),
    ],
)
def test_plan(build, offers, env, cpu, cuda):
    plan = build.plan_build(tools(build, **offers), env)
    assert (plan.cpu, plan.cuda) == (cpu, cuda)


@pytest.mark.parametrize(
    "offers", [{"torch_problem": "torch is missing"}, {"cxx_problem": "no C++ compiler was found"}]
)
def test_a_pure_build_says_why_and_how_to_get_the_kernels_in_one_line(build, offers):
    (note,) = build.plan_build(tools(build, **offers), {}).notes
    assert next(iter(offers.values())) in note
    assert "pip install --no-build-isolation" in note
    assert "\n" not in note


@pytest.mark.parametrize(
    ("offers", "env", "why"),
    [
        ({}, {}, "nvcc was not found"),
        ({"torch_problem": "torch is missing", "nvcc": "nvcc"}, {}, "torch is missing"),
        ({"cxx_problem": "no C++ compiler", "nvcc": "nvcc"}, {}, "no C++ compiler"),
        ({"nvcc": "nvcc"}, {"SSMVDM_SKIP_CUDA_BUILD": "1"}, "SSMVDM_SKIP_CUDA_BUILD"),
    ],
)
def test_an_impossible_force_cuda_is_one_clear_sentence(build, offers, env, why):
    with pytest.raises(SystemExit) as caught:
        build.plan_build(tools(build, **offers), {"FORCE_CUDA": "1", **env})
    assert why in str(caught.value)
    assert "\n" not in str(caught.value)


def test_architecture_list_as_torch_spells_it(build):
    entries = build.architectures("8.0;9.0a, 10.0+PTX", [])
    assert entries == ["8.0", "9.0a", "10.0+PTX"]
    assert build.architecture_flags(entries) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_100,code=compute_100",
    ]


@pytest.mark.parametrize("unset", [None, "", "  "])
def test_default_architectures_are_those_nvcc_knows_with_ptx_for_the_newest(build, unset):
    assert build.architectures(unset, SUPPORTED_BY_NVCC_13)[-1] == "12.0+PTX"
    assert build.architectures(unset, ["sm_80", "sm_90"]) == ["8.0", "9.0+PTX"]


@pytest.mark.parametrize("wrong", ["Hopper", "90", "9.0+SASS", "-O3"])
def test_a_wrong_architecture_is_named(build, wrong):
    with pytest.raises(ValueError, match="TORCH_CUDA_ARCH_LIST") as caught:
        build.architectures(f"8.0;{wrong}", SUPPORTED_BY_NVCC_13)
    assert wrong in str(caught.value)


def test_nvcc_no_older_than_the_default_architectures(build):
    with pytest.raises(ValueError, match="supports none"):
        build.architectures(None, ["sm_52"])


@pytest.mark.skipif(sys.platform == "win32", reason="MSVC is found through the registry")
def test_compiler_search(build, tmp_path):
    assert "no C++ compiler" in build.find_cxx({"PATH": str(tmp_path)})
    assert "nosuch++" in build.find_cxx({"PATH": str(tmp_path), "CXX": "nosuch++"})
    compiler = tmp_path / "g++"
    compiler.write_text("#!/bin/sh\n")
    compiler.chmod(0o755)
    env = {"PATH": str(tmp_path)}
    assert build.find_cxx(env) is None
    assert env["CXX"] == "g++"  # torch's builder would otherwise call c++, which is not there
    assert build.find_cxx({"PATH": str(tmp_path), "CXX": "g++"}) is None


@pytest.mark.parametrize("variable", ["CUDA_HOME", "CUDA_PATH"])
def test_a_named_cuda_folder_is_the_only_place_searched(build, tmp_path, variable):
    assert build.find_nvcc({variable: str(tmp_path / "nothing here"), "PATH": str(tmp_path)}) is None
    (tmp_path / "bin").mkdir()
    nvcc = tmp_path / "bin" / ("nvcc.exe" if sys.platform == "win32" else "nvcc")
    nvcc.write_text("#!/bin/sh\n")
    nvcc.chmod(0o755)
    assert Path(build.find_nvcc({variable: str(tmp_path)})) == nvcc


@pytest.mark.parametrize(
    ("version", "is_usable"), [("2.10.2+cu130", False), ("2.11.0", True), ("2.13.0+cpu", True), ("3.0.0a0+git", True)]
)
def test_oldest_torch(build, monkeypatch, version, is_usable):
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(__version__=version, version=SimpleNamespace(cuda=None)))
    problem, _ = build.inspect_torch()
    assert (problem is None) == is_usable
    if not is_usable:
        assert version in problem


def test_a_broken_torch_is_a_reason_not_an_exception(build, monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)
    problem, cuda = build.inspect_torch()
    assert problem.startswith("torch ")
    assert cuda is None
