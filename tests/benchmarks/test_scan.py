"""The scan benchmark: what a run measures, writes and says of what it could not measure."""

import contextlib
import json
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from benchmarks.kernels import rivals, scan, scan_tasks
from benchmarks.kernels.kind import KIND
from benchmarks.kernels.scan_case import our_tensors, run_ours
from benchmarks.kernels.scan_options import RIVALS, ScanOptions
from benchmarks.kernels.shapes import SHAPES, Shape, shape_named
from benchmarks.measure import timing
from benchmarks.measure.children import call_child
from benchmarks.measure.journal import Journal
from ssmvdm import cli
from ssmvdm.errors import InputError
from tests.conftest import require_backend

pytest.importorskip("matplotlib", reason="matplotlib is not installed")
pytest.importorskip("rich", reason="rich is not installed")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Results of a real run: two shapes of our own and two of a sweep."""
    require_backend("cpu")
    out = tmp_path_factory.mktemp("results")
    arguments = ["--shapes", "16x4x16", "16x8x64", "channels-64", "channels-224", "--states", "4"]
    arguments += ["--threads", "1", "2", "--compiled-length", "1"]
    arguments += ["--launches", "3", "--budget-seconds", "0.05", "--out", str(out)]
    assert cli.main(["bench", "scan", *arguments]) == 0
    return out


@pytest.fixture(scope="module")
def result(folder):
    return json.loads((folder / "scan.json").read_text())


def test_all_files_are_written_and_nothing_else(folder):
    pictures = [f"scan-channels-{theme}.{kind}" for theme in ("light", "dark") for kind in ("svg", "png")]
    expected = sorted([*pictures, *(f"scan.{kind}" for kind in ("json", "csv", "md", "html"))])
    assert sorted(path.name for path in folder.iterdir()) == expected


def test_every_row_has_passed_its_gate_or_says_why_it_has_no_number(result):
    full = ("16x4x16", "16x8x64")
    names = {row["name"] for row in result["times"] if row["shape"] in full and not row["is_ours"]}
    assert names == {rival.name for rival in rivals.all_rivals() if "cpu" in RIVALS[rival.name]}
    for row in result["times"]:
        if row["name"] == "compiled":
            assert row["status"] == "not applicable" and "compiled up to 1" in row["detail"]
            continue
        assert row["status"] == "ok", (row["name"], row["detail"])
        assert row["gate"]["passed"] and row["ratio"] > 0.0 and len(row["seconds"]) == 3
        if row["is_ours"]:
            assert set(row.get("shares_of_floor", {})) <= {"exponentials", "memory"}
    shares = [row["shares_of_floor"] for row in result["times"] if row["is_ours"] and row["mode"] == "forward"]
    assert all(share > 0.0 for own in shares for share in own.values()) and shares
    assert [(row["shape"], row["mode"]) for row in result["threads"]] == [
        (shape, mode) for shape in full for mode in ("forward", "forward+backward")
    ]
    expected = [(shape, name) for shape in full for name in ("ours", "s4d-fft", "s4d-scan")]
    assert [(row["shape"], row["name"]) for row in result["memory"]] == expected
    assert all(row["tensors"] > 1.0 for row in result["memory"])


def test_in_a_sweep_one_variant_of_ours_meets_the_cheap_rivals(result):
    swept = [row for row in result["times"] if row["shape"] == "channels-224" and row["mode"] == "forward"]
    expected = ["ours float32 channels-last", "s4d-fft", "s4d-scan", "sdpa-8x64", "sdpa-equal", "compiled"]
    assert [row["name"] for row in swept] == expected


def test_a_sweep_over_what_rivals_are_in_proportion_to_is_of_ours_alone():
    taking_part = [name for name in scan.SWEEP_RIVALS if scan._takes_part(name, SHAPES["sequences-4k"])]
    assert not taking_part
    assert all(scan._takes_part(name, SHAPES["channels-64"]) for name in scan.SWEEP_RIVALS)
    assert scan._takes_part("eager", SHAPES["base"]) and not scan._takes_part("eager", SHAPES["channels-64"])


def test_shares_of_floors_are_of_the_rates_that_were_measured(result):
    row = next(row for row in result["times"] if row["is_ours"] and row["mode"] == "forward")
    shape, seconds = shape_named(row["shape"], 4).shape, sorted(row["seconds"])[1]
    expected = shape.traffic_bytes("forward", 4) / result["rates"]["bytes_per_second"] / seconds
    assert row["shares_of_floor"]["memory"] == pytest.approx(expected, rel=1e-12)
    if rate := result["rates"]["exponentials_per_second"]:
        assert row["shares_of_floor"]["exponentials"] == pytest.approx(shape.exponentials() / rate / seconds, rel=1e-12)


def test_tables_have_every_shape_and_candidate(folder, result):
    text = (folder / "scan.md").read_text()
    for label in {row["label"] for row in result["times"]} | set(result["settings"]["shapes"]):
        assert label in text
    for title in ("## Threads", "## Peak memory", "## Sweep over channels", "## Without a number", "## Method"):
        assert title in text


def test_a_shape_beyond_the_memory_is_a_row(tmp_path):
    options = ScanOptions(shapes=("1000000000x1000x8",), threads=(1,))
    found = scan.measure(options, lambda *progress: None, Journal(tmp_path / "a.journal", {}, False))
    assert [(row["status"], row["mode"]) for row in found["times"]] == [
        ("out of memory", mode) for mode in ("forward", "forward+backward")
    ]
    assert "GiB, " in found["times"][0]["detail"]
    KIND.check(found | {"wall_seconds": 1.0})
    assert any("out of memory" in cell for table in KIND.tables(found) for row in table.rows for cell in row)


OURS = {"name": "ours float32 channels-last", "label": "ours", "is_ours": True, "dtype": "float32"}
DYING = {"name": "pscan", "label": "a scan", "is_ours": False, "timed_sequences": 1024}
ALIVE = {"name": "sdpa-8x64", "label": "attention", "is_ours": False, "timed_sequences": 1024}
TOOK = {"status": "ok", "detail": "", "seconds": [1.0], "ratio": 1.0}
KILLED = {"status": "out of memory", "detail": "killed by the system (signal 9)"}
BROKE = {"status": "error", "detail": "an illegal memory access"}


def both_modes(about, how):
    return [about | how | {"mode": mode} for mode in scan_tasks.MODES]


@pytest.fixture
def measured_of(tmp_path, monkeypatch):
    """The result of one shape, and what was known at each request, of processes that answer as told."""

    def measured(*answers):
        asked = []

        def child(request, *timeout):
            if request["task"] != "scan_shape":
                return call_child(request)
            asked.append(request["without"])
            return {"threads": [], "keeps_freed_memory": True} | answers[len(asked) - 1]

        monkeypatch.setattr(scan, "call_child", child)
        options = ScanOptions(shapes=("length-8",), threads=(1,))
        found = scan.measure(options, lambda *progress: None, Journal(tmp_path / "a.journal", {}, False))
        KIND.check(found | {"wall_seconds": 1.0})
        return found, asked

    return measured


def test_a_candidate_that_ends_its_process_is_a_row_and_the_others_go_on(measured_of):
    found, asked = measured_of(
        {"times": both_modes(OURS, TOOK), "unfinished": DYING} | KILLED,
        {"times": both_modes(ALIVE, TOOK), "caches": "warm"},
    )
    assert asked == [[], [OURS["name"], "pscan"]]
    assert [(row["name"], row["status"]) for row in found["times"]] == [
        (OURS["name"], "ok"), (OURS["name"], "ok"), ("pscan", "out of memory"), ("pscan", "out of memory"),
        ("sdpa-8x64", "ok"), ("sdpa-8x64", "ok"),
    ]  # fmt: skip


def test_behind_a_candidate_that_broke_the_device_another_process_goes_on(measured_of):
    clocks = {"sm_mhz_min": 1.0, "sm_mhz_median": 2.0, "sm_mhz_max": 3.0}
    ended = {"unfinished": None, "status": "error", "detail": "ended without an answer, exit status 1"}
    found, asked = measured_of(
        {"times": both_modes(OURS, TOOK) + both_modes(DYING, BROKE), "clocks": clocks} | ended,
        {"times": both_modes(ALIVE, TOOK), "caches": "cold", "clocks": {}},
    )
    assert asked == [[], [OURS["name"], "pscan"]]
    assert [row["status"] for row in found["times"]] == ["ok", "ok", "error", "error", "ok", "ok"]
    assert found["clocks"] == [{"shape": "length-8"} | clocks] and found["settings"]["caches"] == "cold"
    found, asked = measured_of({"times": both_modes(OURS, BROKE)} | ended)
    assert asked == [[]] and len(found["times"]) == 2, "nothing to compare the others with"


def test_what_is_known_is_not_measured_again():
    require_backend("cpu")
    name = "ours float32 channels-last"
    shape = timed_shape(rivals=["pscan", "sdpa-equal"], without=[name, "pscan"], mamba=None)
    assert [about["name"] for about, _ in shape.candidates()] == ["sdpa-equal"]
    assert set(shape.base) == set(scan_tasks.MODES), "which is what the others are compared with"


def test_torchs_allocator_can_be_taken_as_it_comes(tmp_path):
    require_backend("cpu")
    options = ScanOptions(shapes=("16x4x16",), rivals=(), threads=(1,), launches=3, keep_freed_memory=False)
    found = scan.measure(options, lambda *progress: None, Journal(tmp_path / "a.journal", {}, False))
    assert {row["status"] for row in found["times"]} == {"ok"}
    assert not found["settings"]["keeps_freed_memory"]
    assert "torch's allocator hands large blocks back" in KIND.method(found | {"wall_seconds": 1.0})


def test_a_child_that_dies_is_a_row(tmp_path, monkeypatch):
    def dead(request, *timeout):
        died = {"status": "out of memory", "detail": "killed by the system (signal 9)"}
        return died if request["task"] == "scan_shape" else call_child(request)

    monkeypatch.setattr(scan, "call_child", dead)
    options = ScanOptions(shapes=("length-8", "length-16"), threads=(1,))
    found = scan.measure(options, lambda *progress: None, Journal(tmp_path / "a.journal", {}, False))
    assert {(row["shape"], row["status"]) for row in found["times"]} == {
        ("length-8", "out of memory"), ("length-16", "out of memory"),
    }  # fmt: skip
    KIND.check(found | {"wall_seconds": 1.0})


SMALL = Shape(4, 16, 4, 4)


def timed_shape(shape=SMALL, **request):
    request = {"device": "cpu", "shape": vars(shape), "ours": [("cpu", "float32", "channels-last")], "seconds": 60.0,
               "compiled_length": 1, "launches": 3, "budget_seconds": 0.01} | request  # fmt: skip
    return scan_tasks.TimedShape(request, timing.HostTimer())


def named(name):
    return next(rival for rival in rivals.all_rivals() if rival.name == name)


def test_a_rival_that_breaks_is_a_row_and_one_that_this_torch_cannot_run_says_so():
    require_backend("cpu")

    def broken(tensors):
        raise RuntimeError("not on this device\nand more")

    shape = timed_shape()
    assert [row["status"] for row in shape.ours("cpu", "float32", "channels-last")] == ["ok", "ok"]
    for name, status in (("pscan", "error"), ("associative", "not applicable")):
        rows = shape.rival(replace(named(name), run=broken))
        assert [(row["status"], row["detail"]) for row in rows] == [(status, "RuntimeError: not on this device")] * 2
    assert all(row["ratio"] > 0.0 for row in shape.rival(named("pscan")))


def test_one_of_ours_that_is_wrong_has_no_numbers(monkeypatch):
    require_backend("cpu")
    monkeypatch.setattr(scan_tasks, "run_ours", lambda tensors, backend: run_ours(tensors, backend) * 1.01)
    shape = timed_shape()
    rows = shape.ours("cpu", "float32", "channels-last")
    assert all(row["status"] == "gate failed" and "seconds" not in row for row in rows)
    assert not shape.base and all("seconds" in row and "ratio" not in row for row in shape.rival(named("pscan")))


def test_a_backend_that_is_not_there_says_why():
    require_backend("cpu")
    rows = timed_shape().ours("triton", "float32", "video")
    assert [row["status"] for row in rows] == ["not applicable"] * 2 and "triton" in rows[0]["detail"].lower()


def test_what_has_not_begun_in_time_is_a_row():
    rows = timed_shape(seconds=-1.0).rival(named("pscan"))
    assert [(row["mode"], row["status"]) for row in rows] == [(mode, "timeout") for mode in scan_tasks.MODES]
    assert rows[0]["detail"] == "not begun within the time limit"


def test_a_run_beyond_its_time_is_whole(tmp_path):
    require_backend("cpu")
    options = ScanOptions(shapes=("8x4x16", "8x5x16"), threads=(1,), time_limit=1e-9)
    found = scan.measure(options, lambda *progress: None, Journal(tmp_path / "a.journal", {}, False))
    assert {row["status"] for row in found["times"] + found["memory"]} == {"timeout"}
    KIND.check(found | {"wall_seconds": 1.0})


def test_time_on_fewer_sequences_is_extrapolated_without_its_fixed_part():
    shape = timed_shape(Shape(30, 16, 4, 4))
    shape._in_turns = lambda functions: {"own": [[3.0], [0.5]], "base": [[7.0], [2.0], [1.0]]}
    row = {"mode": "forward", "timed_sequences": 10, "fixed_seconds": 1.0}
    shape.base = {"forward": list}
    shape._time(row, list)
    assert row["seconds"] == [7.0, 1.0]
    assert row["ratio"] == 0.75


def test_a_rival_runs_on_what_the_budget_allows(monkeypatch):
    rival, shape = named("eager"), Shape(1000, 8, 4, 4)

    def affordable(fixed, each, budget):
        """With calls that take fixed + each x sequences."""
        sizes = []
        monkeypatch.setattr(
            scan_tasks, "calls", lambda run, tensors: sizes.append(len(tensors["u"])) or {"forward": list}
        )
        monkeypatch.setattr(timing, "once", lambda call: fixed + each * sizes[-1])
        taken = timed_shape(shape, budget_seconds=budget)._affordable(rival, "forward")
        return taken["timed_sequences"], round(taken["fixed_seconds"], 9)

    assert affordable(fixed=0.5, each=2**-10, budget=0.75) == (1000, 0.5)
    assert affordable(fixed=0.5, each=2**-7, budget=4.0) == (64, 0.5)
    assert affordable(fixed=0.5, each=2**-7, budget=1.0) == (64, 0.5), "half of a call"
    assert affordable(fixed=0.5, each=2**-10, budget=0.5) == (256, 0.5)
    assert affordable(fixed=0.0, each=2**-7, budget=0.5) == (32, 0.0)


@pytest.fixture
def gpu(monkeypatch):
    """A device whose tensors are the CPU's, and whose free memory is what it last had left."""
    made, left = rivals.leaves, {"bytes": 0}

    def leaves(rival, shape, dtype, device):
        left["bytes"] //= 2  # taken by them
        return made(rival, shape, dtype)

    monkeypatch.setattr(rivals, "leaves", leaves)
    monkeypatch.setattr(scan_tasks, "meter_of", lambda device: SimpleNamespace(release=lambda: None))
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda: (left["bytes"], 2**40))
    return left


@pytest.mark.parametrize(("needs", "timed"), [(1.0, 64), (1.5, 32), (7.9, 8)])
def test_on_a_gpu_both_modes_of_a_rival_have_what_was_free_before_it(gpu, needs, timed):
    rival, shape = named("sdpa-equal"), Shape(64, 16, 4, 4)
    taken = rival.bytes_per_element * shape.elements()
    gpu["bytes"] = int(taken / scan_tasks.GPU_MEMORY_SHARE / needs) + 1
    rows = timed_shape(shape, device="cuda").rival(rival)
    assert [(row["status"], row["timed_sequences"]) for row in rows] == [("ok", timed)] * 2


def test_a_gpu_that_a_candidate_broke_leaves_rows(gpu, monkeypatch):
    def release():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(scan_tasks, "meter_of", lambda device: SimpleNamespace(release=release))
    shape = timed_shape(device="cuda")
    rows = shape.rival(named("sdpa-equal")) + shape.ours("cuda", "float32", "video")
    assert [row["status"] for row in rows] == ["error"] * 4 and "illegal memory access" in rows[0]["detail"]


def test_on_a_gpu_a_process_ends_behind_a_candidate_that_broke(gpu, monkeypatch):
    require_backend("cpu")

    def broken(tensors):
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    monkeypatch.setattr(timing, "timer_of", lambda device: contextlib.nullcontext(timing.HostTimer()))
    monkeypatch.setattr(scan_tasks, "our_tensors", lambda *case: our_tensors(*case[:-1]))  # not on its device
    of = {name: named(name) for name in ("pscan", "sdpa-equal")}
    monkeypatch.setattr(rivals, "all_rivals", lambda mamba: (replace(of["pscan"], run=broken), of["sdpa-equal"]))
    gpu["bytes"] = 2**40
    request = timed_shape(device="cuda", ours=[("cpu", "float32", "channels-last")]).request
    request |= {"rivals": list(of), "without": [], "mamba": None, "keep_freed_memory": False,
                "memory_limit_bytes": None, "thread_counts": []}  # fmt: skip
    parts = []
    with pytest.raises(SystemExit):
        for part in scan_tasks.shape_rows(request):
            parts.append(part)
    assert [part["unfinished"] and part["unfinished"]["name"] for part in parts] == [OURS["name"], "pscan", None]
    assert [row["status"] for row in parts[-1]["times"]] == ["ok", "ok", "error", "error"]
    rest = list(scan_tasks.shape_rows(request | {"without": [OURS["name"], "pscan"]}))
    assert [row["status"] for row in rest[-1]["times"]] == ["ok", "ok"] and "unfinished" not in rest[-1]


def test_what_a_replay_writes_is_checked(gpu, monkeypatch):
    """A graph that was captured from another call than it is replayed for, once the buffers are zero."""
    gpu["bytes"] = 2**40
    rival, mode = named("sdpa-equal"), "forward+backward"
    assert [row["status"] for row in timed_shape(device="cuda").rival(rival)] == ["ok"] * 2

    def prepare(timer, call):
        buffers = call()
        return lambda: buffers

    monkeypatch.setattr(timing.HostTimer, "prepare", prepare)
    rows = timed_shape(device="cuda").rival(rival)
    assert [row["status"] for row in rows] == ["gate failed"] * 2 and not any("seconds" in row for row in rows)
    assert rows[0]["detail"].startswith("y, replayed: ") and rows[1]["mode"] == mode


def test_shapes_that_are_compiled_come_last(tmp_path, monkeypatch):
    asked = []

    def child(request, *timeout):
        if request["task"] == "scan_shape":
            asked.append(request["shape"]["length"])
        told = {"status": "timeout", "detail": "made up"}
        return told if request["task"].startswith("scan_") else call_child(request)

    monkeypatch.setattr(scan, "call_child", child)
    options = ScanOptions(shapes=("16x4x16", "16x9x16", "sequences-4k"), threads=(1,), compiled_length=16)
    for name, change, expected in (
        ("with", {"compiled_length": 4}, [9, 16, 4]), ("without", {"rivals": ("eager",)}, [4, 9, 16]),
    ):  # fmt: skip
        asked.clear()
        journal = Journal(tmp_path / name, {}, False)
        found = scan.measure(replace(options, **change), lambda *progress: None, journal)
        assert asked == expected and list(found["settings"]["shapes"]) == list(options.shapes)


def test_a_gpus_floors_and_clocks_are_in_the_tables(result):
    """Of a result of the CPU, with what a GPU has besides."""
    found = json.loads(json.dumps(result))
    found["settings"] |= {"device": "cuda", "caches": "cold"}
    found["environment"] |= {"multiprocessors": 132, "copy_bytes_per_second": 4e12}
    found["clocks"] = [{"shape": "16x4x16", "sm_mhz_min": 1500.0, "sm_mhz_median": 1755.0, "sm_mhz_max": 1980.0}]
    scan._add_shares(found, {name: shape_named(name, 4).shape for name in found["settings"]["shapes"]})
    KIND.check(found)
    row = next(row for row in found["times"] if row["is_ours"] and row["mode"] == "forward")
    shape = shape_named(row["shape"], 4).shape
    special = shape.elements() * (2 * 4 + 6) / (132 * 1755e6 * 16)
    expected = {"special functions": special, "memory": shape.traffic_bytes("forward", 4) / 4e12}
    seconds = sorted(row["seconds"])[1]
    assert row["shares_of_floor"] == pytest.approx({name: floor / seconds for name, floor in expected.items()})
    clocks = next(table for table in KIND.tables(found) if table.title == "Clocks")
    assert clocks.rows == [["16x4x16", "1500 to 1980", "not read", "not read", "not read"]]
    assert "clock that was read" in KIND.method(found)


def test_shapes_of_no_sweep_that_is_shown_are_in_the_tables(result):
    found = json.loads(json.dumps(result))
    found["settings"]["shapes"].pop("channels-64")
    found["times"] = [row for row in found["times"] if row["shape"] != "channels-64"]
    titles = {table.title: table for table in KIND.tables(found)}
    assert "Sweep over channels" not in titles and "channels-224" in titles["Ours, forward"].header


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"device": "tpu"}, "--device: expected cpu or cuda, got 'tpu'"),
        ({"rivals": ("mamba-ssm",)}, "--rivals: unknown 'mamba-ssm'; expected some of eager"),
        ({"device": "cuda", "rivals": ("eager",)}, "--rivals: unknown 'eager'; expected some of mamba-ssm"),
        ({"dtypes": ()}, "--dtypes: expected at least one"),
        ({"launches": 0}, "--launches: expected whole numbers of at least 1, got 0"),
        ({"time_limit": float("nan")}, "--time-limit: expected a positive number, got nan"),
    ],
)
def test_options_that_cannot_be_used_are_named(changes, message, monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    with pytest.raises(InputError, match=message):
        replace(ScanOptions(), **changes).check()


def test_the_table_of_rivals_is_that_of_the_options():
    assert [rival.name for rival in rivals.all_rivals()] == list(RIVALS)
    gpu = ScanOptions(device="cuda")
    assert gpu.compared() == ("mamba-ssm", "mamba-ssm-folded", "sdpa-8x64", "sdpa-equal", "compiled")
    assert gpu.storage_types()[0] == "bfloat16" and gpu.timed_launches() == 200
    assert scan._variants(gpu, is_sweep=True) == [
        ("cuda", "bfloat16", "channels-last"), ("triton", "bfloat16", "channels-last"),
    ]  # fmt: skip


def test_options_are_valid_and_names_are_shapes():
    for options in (ScanOptions(), ScanOptions.quick(), ScanOptions.full()):
        options.check()
    assert shape_named("base", 5).shape == Shape(1024, 128, 64, 5)
    assert shape_named("3x2x8", 5).shape == Shape(3, 8, 2, 5)
    assert all(shape_named(name, 16).shape == named.shape for name, named in SHAPES.items())
    for wrong in ("3x2", "0x1x8", "x", "3x2x8x1", "base2"):
        with pytest.raises(ValueError, match=f"unknown shape '{wrong}'"):
            shape_named(wrong, 16)
