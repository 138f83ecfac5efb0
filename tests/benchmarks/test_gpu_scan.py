"""The rivals that a GPU is needed for, without one: what they compute on the CPU, and mamba-ssm's archive."""

import io
import tarfile
from dataclasses import replace
from functools import cache, partial
from types import SimpleNamespace

import pytest
import torch

from benchmarks.kernels import mamba_ssm_sdist, rival_layers, rival_scans, rivals
from benchmarks.kernels.scan_case import Shape, gate_rival
from benchmarks.kernels.scan_options import RIVALS
from benchmarks.kernels.scan_tasks import calls
from benchmarks.measure import eager
from ssmvdm.errors import InputError
from tests.gpu import benchmark

SMALL = Shape(32, 16, 9, 4)


ON_GPU = [name for name, devices in RIVALS.items() if "cuda" in devices]


@pytest.fixture
def all_rivals(monkeypatch):
    """Every rival, with the eager scan in place of mamba-ssm's, and compiled without code generation."""
    monkeypatch.setattr(mamba_ssm_sdist, "scan_in", lambda folder: rival_scans.eager_in_float32)
    compiled = rival_scans._compiled_twice.__wrapped__
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    monkeypatch.setattr(rival_scans, "_compiled_twice", cache(compiled))
    return {rival.name: rival for rival in rivals.all_rivals()}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", ON_GPU)
def test_rivals_compute_what_they_claim(name, dtype, all_rivals):
    rival = all_rivals[name]
    tensors = rivals.leaves(rival, SMALL, dtype)
    assert {tensors[key].dtype for key in rival.per_sequence} == {dtype}
    gate = gate_rival(rival, tensors)
    assert gate.has_passed, gate.first_failure()
    wrong = replace(rival, run=lambda tensors: rival.run(tensors) * 1.2)
    assert not gate_rival(wrong, tensors).has_passed


@pytest.mark.parametrize("name", ON_GPU)
def test_what_is_timed_can_be_called_again_and_again(name, all_rivals):
    rival = all_rivals[name]
    timed = calls(rival.run, rivals.leaves(rival, SMALL))
    (y, first), (_, second) = timed["forward+backward"](), timed["forward+backward"]()
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert torch.equal(timed["forward"](), y) and not timed["forward"]().requires_grad


def test_a_token_that_resets_too_little_is_noticed(all_rivals, monkeypatch):
    monkeypatch.setattr(rival_scans, "RESET", 0.1)
    rival = all_rivals["mamba-ssm-folded"]
    assert not gate_rival(rival, rivals.leaves(rival, SMALL)).has_passed


def test_folding_needs_full_rows_and_copies_nothing():
    with pytest.raises(ValueError, match="expected a multiple of 16 to fold, got 17"):
        rival_scans.folded_tensors(17, 2, 3, 1, torch.Generator())
    u = rival_scans.folded_tensors(32, 2, 3, 1, torch.Generator())["u"]
    assert u.shape == (16, 2, 2, 4) and rival_scans.fold(u).data_ptr() == u.data_ptr()


def test_heads_of_equal_width():
    assert [rival_layers.equal_heads(channels) for channels in (224, 64, 128, 16, 896)] == [
        (4, 56), (1, 64), (2, 64), (1, 16), (14, 64),
    ]  # fmt: skip


# -- mamba-ssm's archive -----------------------------------------------------------------------------------------------


def archive_of(folder, names):
    path = folder / "mamba_ssm-9.8.7.post1.tar.gz"
    with tarfile.open(path, "w:gz") as package:
        for name in names:
            member = tarfile.TarInfo(name)
            member.size = len(name)
            package.addfile(member, io.BytesIO(name.encode()))
    return path


def sdist_names(*left_out):
    sources = [*mamba_ssm_sdist.NEEDED, "static_switch.h"]
    names = [f"mamba_ssm-9.8.7.post1/{mamba_ssm_sdist.SOURCES}/{name}" for name in sources if name not in left_out]
    return [*names, "mamba_ssm-9.8.7.post1/setup.py", f"x/../../{mamba_ssm_sdist.SOURCES}/../../../escaped.h"]


def test_only_the_scan_is_unpacked_and_only_what_is_compared_is_compiled(tmp_path):
    archive = archive_of(tmp_path, sdist_names())
    source = mamba_ssm_sdist.unpack(archive, tmp_path / "work")
    assert {path.name for path in source.iterdir()} == {*mamba_ssm_sdist.NEEDED, "static_switch.h"}
    assert not list(tmp_path.rglob("escaped.h"))
    files = mamba_ssm_sdist.write_instances(source)
    assert [path.name for path in files] == [
        "selective_scan.cpp", "only_fwd_fp32.cu", "only_fwd_bf16.cu", "only_bwd_fp32.cu", "only_bwd_bf16.cu",
        "left_out.cpp",
    ]  # fmt: skip
    assert "selective_scan_bwd_cuda<at::BFloat16, float>(SSMParamsBwd&, cudaStream_t);" in files[4].read_text()
    before = files[4].stat().st_mtime_ns
    mamba_ssm_sdist.write_instances(source)
    assert files[4].stat().st_mtime_ns == before, "what has been compiled stays valid"
    assert mamba_ssm_sdist.version(archive) == "9.8.7.post1"


def test_every_pair_of_types_is_either_compiled_or_left_out():
    kept = {(storage, "float") for storage in mamba_ssm_sdist.COMPILED.values()}
    everything = {(s, w) for s in ("float", "at::Half", "at::BFloat16") for w in ("float", "complex_t")}
    assert kept | set(mamba_ssm_sdist.LEFT_OUT) == everything and not kept & set(mamba_ssm_sdist.LEFT_OUT)


def test_archives_that_cannot_be_used_are_named(tmp_path):
    with pytest.raises(InputError, match=r"mamba_ssm-9.8.7.post1.tar.gz has no csrc/selective_scan/selective_scan.h"):
        mamba_ssm_sdist.unpack(archive_of(tmp_path, sdist_names("selective_scan.h")), tmp_path / "work")
    (tmp_path / "text.tar.gz").write_text("no archive")
    with pytest.raises(InputError, match="MAMBA_SDIST: cannot read"):
        mamba_ssm_sdist.unpack(tmp_path / "text.tar.gz", tmp_path / "other")
    with pytest.raises(InputError, match="were not compiled here"):
        mamba_ssm_sdist.load(tmp_path)
    (tmp_path / "built").mkdir()
    (tmp_path / "built" / f"{mamba_ssm_sdist.MODULE}.so").write_text("no library")
    with pytest.raises(InputError, match="cannot be loaded"):
        mamba_ssm_sdist.load(tmp_path)


def test_the_binding_is_called_as_it_wants_to_be(monkeypatch):
    """A module with its two functions, which compute eagerly and look at what they are given."""

    def plain(u, delta, A, B, C, D, z, bias, softplus):
        assert B.dim() == C.dim() == 4 and B.shape[1] == 1
        assert all(x.stride(-1) == 1 for x in (u, delta, B, C, z))
        return eager.selective_scan(u, delta, A, B[:, 0], C[:, 0], D, z, bias, softplus)

    def fwd(*arguments):
        with torch.no_grad():
            y = plain(*arguments)
            return plain(*arguments[:6], torch.full_like(arguments[6], 1e3), *arguments[7:]) / 1e3, torch.empty(0), y

    def bwd(u, delta, A, B, C, D, z, bias, dy, states, out, dz, softplus, recompute_out_z):
        assert dz is None and recompute_out_z is False and dy.is_contiguous()
        leaves = [x.detach().requires_grad_() for x in (u, delta, A, B, C, D, z, bias)]
        with torch.enable_grad():
            y = plain(*leaves, softplus)
        du, ddelta, dA, dB, dC, dD, dz, dbias = torch.autograd.grad(y, leaves, dy)
        return du, ddelta, dA, dB, dC, dD, dbias, dz

    scan = mamba_ssm_sdist.scan_of(SimpleNamespace(fwd=fwd, bwd=bwd))
    monkeypatch.setattr(mamba_ssm_sdist, "scan_in", lambda folder: scan)
    for name in ("mamba-ssm", "mamba-ssm-folded"):
        rival = {rival.name: rival for rival in rivals.all_rivals()}[name]
        gate = gate_rival(rival, rivals.leaves(rival, SMALL))
        assert gate.has_passed, (name, gate.first_failure())


def test_without_its_kernels_mamba_ssm_says_what_is_missing(tmp_path):
    for folder, message in (
        (None, "no folder of its compiled kernels was named"),
        (tmp_path, "were not compiled here"),
    ):
        rival = rivals.all_rivals(folder)[0]
        assert rival.label == "mamba-ssm's kernels, twice with flips"
        with pytest.raises(InputError, match=message):
            rival.run(rivals.leaves(rival, SMALL))
    (tmp_path / "version").write_text("9.8.7")
    assert rivals.all_rivals(tmp_path)[0].label == "mamba-ssm 9.8.7's kernels, twice with flips"


@pytest.mark.parametrize(("arguments", "parts", "stem"), [
    (("--parts", "layers", "memory", "--resume"), ["layers", "memory"], "report"),
    (("--parts", "memory"), ["memory"], "memory"),
])  # fmt: skip
def test_parts_of_a_run_at_length(tmp_path, monkeypatch, arguments, parts, stem):
    seen = []
    monkeypatch.setattr(benchmark.runner, "run", lambda *run: seen.append(run))
    assert benchmark.main(["--device", "cpu", "--out", str(tmp_path), *arguments]) == 0
    ((run, how, name, folder),) = seen
    assert (list(run), name, folder, how.resume) == (parts, stem, tmp_path, "--resume" in arguments)


def test_turning_round_is_its_own_derivative():
    x = torch.randn(2, 3, 4, 6, dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(rival_scans._Turn.apply, (x,))
    turned = rival_scans._Turn.apply(x)
    assert torch.equal(turned[..., :-1], x[..., :-1].flip(-1)) and torch.equal(turned[..., -1], x[..., -1])


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path, capsys):
    assert benchmark.main(["--out", str(tmp_path / "out")]) == 2
    message = "--device cuda: no such device can be used: PyTorch finds no CUDA device\n"
    assert capsys.readouterr().err == message and not (tmp_path / "out").exists()
