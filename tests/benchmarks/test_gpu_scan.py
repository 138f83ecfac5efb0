"""The GPU scan benchmark without a GPU: its rivals on the CPU, mamba-ssm's archive, and the whole of it on small
shapes."""

import io
import json
import tarfile
from dataclasses import replace
from functools import partial
from types import SimpleNamespace

import pytest
import torch

from benchmarks import bench_scan
from benchmarks.bench_scan import Options
from benchmarks.kernels import gpu_rivals, mamba_ssm_sdist, rivals, scan_case
from benchmarks.kernels.gpu_tables import markdown
from benchmarks.kernels.scan_case import Shape, gate_rival
from benchmarks.measure import eager, gpu_timing
from ssmvdm.errors import InputError
from tests.conftest import require_backend

SMALL = Shape(32, 16, 9, 4)


@pytest.fixture
def all_rivals(monkeypatch):
    """Every rival, with the eager scan in place of mamba-ssm's, and compiled without code generation."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="aot_eager"))
    return {rival.name: rival for rival in gpu_rivals.all_rivals(gpu_rivals.eager_in_float32)}


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", bench_scan.RIVAL_NAMES)
def test_rivals_compute_what_they_claim(name, dtype, all_rivals):
    rival = all_rivals[name]
    tensors = rivals.leaves(rival, SMALL, dtype)
    assert {tensors[key].dtype for key in rival.per_sequence} == {dtype}
    gate = gate_rival(rival, tensors)
    assert gate.has_passed, gate.first_failure()
    wrong = replace(rival, run=lambda tensors: rival.run(tensors) * 1.2)
    assert not gate_rival(wrong, tensors).has_passed


@pytest.mark.parametrize("name", bench_scan.RIVAL_NAMES)
def test_a_backward_can_be_timed_again_and_again(name, all_rivals):
    rival = all_rivals[name]
    functions = bench_scan.functions_of(rival.run, rivals.leaves(rival, SMALL))
    first, second = functions["backward"](), functions["backward"]()
    assert all(torch.equal(a, b) for a, b in zip(first, second, strict=True))
    assert not functions["forward"]().requires_grad


def test_a_token_that_resets_too_little_is_noticed(all_rivals, monkeypatch):
    monkeypatch.setattr(gpu_rivals, "RESET", 0.1)
    rival = all_rivals["mamba-ssm-folded"]
    assert not gate_rival(rival, rivals.leaves(rival, SMALL)).has_passed


def test_folding_needs_full_rows_and_copies_nothing():
    with pytest.raises(ValueError, match="expected a multiple of 16 to fold, got 17"):
        gpu_rivals.folded_tensors(17, 2, 3, 1, torch.Generator())
    u = gpu_rivals.folded_tensors(32, 2, 3, 1, torch.Generator())["u"]
    assert u.shape == (16, 2, 2, 4) and gpu_rivals.fold(u).data_ptr() == u.data_ptr()


def test_heads_of_equal_width():
    assert [gpu_rivals.equal_heads(channels) for channels in (224, 64, 128, 16, 896)] == [
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


def test_the_binding_is_called_as_it_wants_to_be(all_rivals):
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
    for name in ("mamba-ssm", "mamba-ssm-folded"):
        rival = {rival.name: rival for rival in gpu_rivals.all_rivals(scan)}[name]
        gate = gate_rival(rival, rivals.leaves(rival, SMALL))
        assert gate.has_passed, (name, gate.first_failure())


# -- the whole ---------------------------------------------------------------------------------------------------------

TINY = ("--device", "cpu", "--sequences", "8", "--channels", "16", "--states", "4", "--lengths", "3", "5",
        "--launches", "6", "--budget-s", "0.2", "--dtype", "float32",
        "--rivals", "mamba-ssm", "sdpa-equal")  # fmt: skip


def run(folder, *more):
    status = bench_scan.main([*TINY, *more, "--out", str(folder)])
    return status, json.loads((folder / "scan-gpu.json").read_text())


def test_the_whole_benchmark_on_a_small_shape(tmp_path, capsys):
    require_backend("cpu")
    status, result = run(tmp_path)
    assert status == 0
    expected = ["scan-gpu-dark.svg", "scan-gpu-light.svg", "scan-gpu.json", "scan-gpu.md"]
    assert sorted(path.name for path in tmp_path.iterdir()) == expected
    assert {"device", "commit", "date", "torch"} < set(result["environment"])
    keys = [(row["length"], row["name"], row["mode"]) for row in result["rows"]]
    names = ["cpu channels-last", "cpu video", "cpu length-contiguous", "sdpa-equal"]
    assert keys == [(length, name, mode) for length in (3, 5) for name in names for mode in bench_scan.MODES]
    for row in result["rows"]:
        assert row["status"] == "ok" and row["gate"]["passed"], row["detail"]
        assert row["p10_seconds"] <= row["seconds"] <= row["p90_seconds"] and row["ratio"] > 0
    assert result["rows"][0]["ratio"] == 1.0
    text = (tmp_path / "scan-gpu.md").read_text()
    assert text in capsys.readouterr().out
    assert "| ours, cpu, video |" in text and "warm caches" in text


def test_one_of_ours_that_is_wrong_has_no_numbers_and_fails_the_command(tmp_path, monkeypatch):
    require_backend("cpu")
    right = scan_case.run_ours
    monkeypatch.setattr(scan_case, "run_ours", lambda tensors, backend: right(tensors, backend) * 1.01)
    status, result = run(tmp_path)
    assert status == 1
    for row in result["rows"]:
        assert ("seconds" in row) == (not row["is_ours"])
    assert "ours, cpu, video, length 3: y:" in (tmp_path / "scan-gpu.md").read_text()


def test_a_rival_that_breaks_leaves_the_others(tmp_path, monkeypatch):
    require_backend("cpu")

    def broken(tensors):
        raise RuntimeError("out of luck\nand more")

    monkeypatch.setattr(rivals, "sdpa", broken)
    status, result = run(tmp_path)
    assert status == 0
    bad = [row for row in result["rows"] if row["name"] == "sdpa-equal"]
    assert {(row["status"], row["detail"]) for row in bad} == {("error", "RuntimeError: out of luck")}
    assert sum("seconds" in row for row in result["rows"]) == 12


def test_lengths_with_a_compiled_rival_come_last(tmp_path, all_rivals):
    require_backend("cpu")
    status, result = run(tmp_path, "--rivals", "compiled", "--compiled-lengths", "3", "--layouts", "video")
    assert status == 0
    assert [(row["length"], row["name"]) for row in result["rows"] if row["mode"] == "backward"] == [
        (5, "cpu video"), (3, "cpu video"), (3, "compiled"),
    ]  # fmt: skip
    assert "| | length 3 | length 5 |" in (tmp_path / "scan-gpu.md").read_text().replace("|  |", "| |")


def test_what_was_measured_is_kept_when_the_run_is_stopped(tmp_path, monkeypatch):
    require_backend("cpu")
    right = bench_scan._measure_shape

    def stops(options, shape, *rest):
        if shape.length == 5:
            raise KeyboardInterrupt
        right(options, shape, *rest)

    monkeypatch.setattr(bench_scan, "_measure_shape", stops)
    with pytest.raises(KeyboardInterrupt):
        run(tmp_path)
    assert {row["length"] for row in json.loads((tmp_path / "scan-gpu.json").read_text())["rows"]} == {3}


def test_shares_floors_and_clocks_are_in_the_tables(tmp_path):
    require_backend("cpu")
    _, result = run(tmp_path, "--layouts", "video")
    result["environment"] |= {"multiprocessors": 132, "copy_bytes_per_second": 4e12, "driver": "580.1"}
    result["clocks"] = [{"length": 3, "sm_mhz_min": 1500.0, "sm_mhz_median": 1755.0, "sm_mhz_max": 1980.0}]
    shape = Shape(8, 16, 3, 4)
    bench_scan._add_shares(shape, result, 1755.0, 4)
    ours = [row for row in result["rows"] if row["is_ours"] and row["length"] == 3]
    assert [set(row["floors"]) for row in ours] == [{"memory", "special functions"}, {"memory", "issue"}]
    for row in ours:
        assert row["share_of_floor"] == max(row["floors"].values()) / row["seconds"]
    next(row for row in result["rows"] if row["name"] == "sdpa-equal")["timed_sequences"] = 4
    text = markdown(result)
    assert "driver 580.1" in text and "| length 3 | 1500 to 1980 | not read | not read | not read |" in text
    assert "* (" in text and " %]" in text
    bench_scan.write(result, tmp_path)
    assert "floor of ours" in (tmp_path / "scan-gpu-light.svg").read_text()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "tpu"}, "--device: unknown 'tpu'"),
        ({"dtype": "int8"}, "--dtype: unknown 'int8'"),
        ({"layouts": ("diagonal",)}, "--layouts: unknown 'diagonal'"),
        ({"layouts": ()}, "--layouts: expected at least one"),
        ({"rivals": ("lstm",)}, "--rivals: unknown 'lstm'"),
        ({"lengths": ()}, "--lengths: expected whole numbers"),
        ({"launches": 0}, "--launches: expected whole numbers of at least 1"),
        ({"budget_s": float("nan")}, "--budget-s: expected a positive number"),
    ],
)
def test_options_that_cannot_be_used_are_named(changes, message):
    with pytest.raises(InputError, match=message):
        replace(Options(device="cpu"), **changes).check()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_one_line_says_so(tmp_path, capsys):
    assert bench_scan.main(["--out", str(tmp_path)]) == 2
    assert capsys.readouterr().out == "bench_scan: --device cuda: PyTorch finds no CUDA device\n"
    with gpu_timing.timer_of("cpu") as timer:
        assert isinstance(timer, gpu_timing.HostTimer)


def test_arguments_are_the_options():
    assert bench_scan.parse([]) == Options()
    found = bench_scan.parse(["--compiled-lengths", "--lengths", "7", "--mamba", "folder", "--budget-s", "2"])
    assert (found.compiled_lengths, found.lengths, str(found.mamba), found.budget_s) == ((), (7,), "folder", 2.0)
