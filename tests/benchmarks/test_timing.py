"""Timing, statistics, clocks and floors of the GPU benchmark, with clocks and devices that are made up."""

import contextlib
import os
import time
from types import SimpleNamespace

import pytest

from benchmarks.kernels.floors import gpu_floors
from benchmarks.kernels.scan_case import Shape
from benchmarks.measure import gpu_device, timing


class FakeClock:
    """Advances only when told to."""

    def __init__(self):
        self.now = 0.0

    def __call__(self) -> float:
        return self.now

    def spend(self, seconds: float):
        def function():
            self.now += seconds

        return function


def test_the_host_timer_gives_the_time_of_every_call():
    clock = FakeClock()
    timer = timing.HostTimer(clock)
    launch = timer.prepare(clock.spend(0.25))
    assert clock.now == 0.25, "it runs once before it is timed"
    assert timer.block(launch, 3) == [0.25] * 3
    assert timer.turns(7) == 7
    assert timer.clocks() == {}


def test_on_the_host_a_short_call_is_repeated_until_the_caches_are_its_own():
    clock, calls = FakeClock(), []

    def launch():  # of 4 ms, but the first finds the caches of another
        calls.append(clock.now)
        clock.now += 0.004 if calls[1:] else 0.007

    assert timing.HostTimer(clock).block(launch, 1) == pytest.approx([0.004])
    assert calls == pytest.approx([0.0, 0.007, 0.011])


def test_candidates_take_turns_in_blocks():
    order = []

    class Timer:
        def turns(self, launches):
            return 3

        def block(self, launch, launches):
            order.append((launch, launches))
            return [0.001] * launches

    samples = timing.in_turns(Timer(), {"a": "a", "b": "b"}, launches=7, budget_s=9.0)
    assert order == [("a", 1), ("b", 1), *[("a", 3), ("b", 3)] * 3]
    assert [len(block) for block in samples["a"]] == [3, 3, 3]


def test_a_slow_candidate_keeps_to_its_budget_and_has_a_turn_all_the_same():
    clock = FakeClock()
    calls = {"slow": clock.spend(2.0), "fast": clock.spend(0.001), "hopeless": clock.spend(50.0)}
    timer = timing.HostTimer(clock)
    timer.turns = lambda launches: 10
    samples = timing.in_turns(timer, calls, launches=200, budget_s=5.0)
    assert [len(block) for block in samples["slow"]] == [2, 2]  # 4 s of 5 leave room for one more turn
    assert [len(block) for block in samples["hopeless"]] == [1]
    assert sum(map(len, samples["fast"])) == 200


def test_a_candidate_beyond_its_budget_has_the_least_number_of_turns():
    clock = FakeClock()
    samples = timing.in_turns(timing.HostTimer(clock), {"slow": clock.spend(9.0)}, 5, 1.0, least_turns=3)
    assert samples == {"slow": [[9.0]] * 3}


@pytest.mark.parametrize(("times", "turns"), [
    ([9.0, 9.0, 8.0, 8.0], 3), ([9.0, 2.0, 2.0, 2.0], 3), ([9.0, 9.0, 2.0, 2.0, 2.0, 2.0], 5),
    ([2.0 ** (9 - i) for i in range(10)], 9),
])  # fmt: skip
def test_a_candidate_whose_turns_were_disturbed_has_more_of_them(times, turns):
    clock = FakeClock()
    left = iter([1.0, *times])  # the first tells what a launch costs

    def launch():
        clock.now += next(left)

    samples = timing.in_turns(timing.HostTimer(clock), {"slow": launch}, 15, 0.5, least_turns=3)
    assert samples["slow"] == [[time] for time in times[:turns]]


def test_a_ratio_is_of_the_turns_that_both_took_part_in():
    # The third turn was disturbed for both; a candidate that sat out has fewer turns.
    assert timing.ratio([[2.0, 2.0], [2.0], [20.0]], [[1.0], [1.0], [9.0], [1.0]]) == 2.0


@pytest.fixture
def device(monkeypatch):
    """A torch whose device notes what it is asked to do, each replay taking a millisecond more than the last."""
    log, state = [], {"ms": 0.0}

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            log.append("event")
            self.at = state["ms"]

        def elapsed_time(self, end):
            return end.at - self.at

    class Graph:
        replays = 0

        def replay(self):
            self.replays += 1
            log.append("replay")
            state["ms"] += self.replays

    class Buffer:
        def zero_(self):
            log.append("flush")
            state["ms"] += 100.0

    @contextlib.contextmanager
    def graph(captured, stream):
        log.append("capture")
        yield
        log.append("captured")

    cuda = SimpleNamespace(
        current_stream=lambda: "own", default_stream=lambda: "default", Event=Event, CUDAGraph=Graph, graph=graph,
        synchronize=lambda: log.append("wait"), current_device=lambda: 0,
        get_device_properties=lambda index: SimpleNamespace(L2_cache_size=50 * 2**20),
    )  # fmt: skip
    sizes = []
    fake = SimpleNamespace(cuda=cuda, uint8="uint8", empty=lambda size, **_: sizes.append(size) or Buffer())
    monkeypatch.setattr(timing, "torch", fake)

    def query(fields, meanwhile):
        log.append("clocks")
        meanwhile()
        return {"sm_mhz": 1700.0}

    monkeypatch.setattr(gpu_device, "query", query)
    return SimpleNamespace(log=log, sizes=sizes, cuda=cuda)


def test_a_launch_on_a_gpu_is_a_replay_with_cold_caches_between_events(device):
    timer = timing.CudaTimer()
    assert (timer.turns(200), timer.turns(3)) == (10, 3)
    launch = timer.prepare(lambda: device.log.append("call") or len(device.log))
    assert device.sizes == [200 * 2**20]
    warm = ["call"] * timing.WARM_UPS
    assert device.log == [*warm, "wait", "capture", "call", "captured", "replay", "wait"]
    device.log.clear()
    assert timer.block(launch, 2) == pytest.approx([0.002, 0.003])  # not the hundred of the flush before it
    each = ["flush", "event", "replay", "event"]
    busy = ["replay"] * timing.TURNS
    assert device.log == [*each, *each, "clocks", *busy, "wait", "wait"], "the device is at work while they are read"
    assert timer.clocks() == {"sm_mhz_min": 1700.0, "sm_mhz_median": 1700.0, "sm_mhz_max": 1700.0}
    assert launch() == len(warm) + 3, "what the captured call returned"


def test_a_graph_cannot_be_captured_on_the_default_stream(device):
    device.cuda.current_stream = device.cuda.default_stream
    with pytest.raises(ValueError, match="expected a stream of its own"):
        timing.CudaTimer()


def test_what_nvidia_smi_says():
    assert gpu_device.parsed(gpu_device.CLOCK_FIELDS, "1980, 3201, 512.34, 45\n") == {
        "sm_mhz": 1980.0, "memory_mhz": 3201.0, "power_w": 512.34, "temperature_c": 45.0,
    }  # fmt: skip
    assert gpu_device.parsed(gpu_device.CLOCK_FIELDS, "1980, [N/A], [Not Supported], 45") == {
        "sm_mhz": 1980.0, "temperature_c": 45.0,
    }  # fmt: skip
    assert gpu_device.parsed(gpu_device.FIXED_FIELDS, "580.159.04, 1980, 3201, 700.00")["driver"] == "580.159.04"
    assert gpu_device.parsed(gpu_device.CLOCK_FIELDS, "N/A, 3201") == {"memory_mhz": 3201.0}
    assert gpu_device.parsed(gpu_device.CLOCK_FIELDS, "") == {}


@pytest.mark.parametrize(
    ("script", "found"),
    [
        ("sleep 0.2; echo 1980, 3201, 512.34, 45", {"sm_mhz": 1980.0, "temperature_c": 45.0}),
        ("echo 1980, 3201, 512.34, 45; exit 9", {}),
        ("exec sleep 60", {}),
    ],
)
def test_nvidia_smi_is_asked_while_the_device_is_kept_busy(tmp_path, monkeypatch, script, found):
    program = tmp_path / "nvidia-smi"
    program.write_text(f"#!/bin/sh\n{script}\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    monkeypatch.setattr(gpu_device, "_identity", lambda: "GPU-0")
    calls = []

    def meanwhile():
        calls.append(1)
        time.sleep(0.01)

    fields = {"clocks.sm": "sm_mhz", "a": "b", "c": "d", "temperature.gpu": "temperature_c"}
    answer = gpu_device.query(fields, meanwhile, timeout_s=2.0)
    assert {name: answer[name] for name in found} == found and bool(answer) == bool(found)
    assert "sleep" not in script or len(calls) > 5


def test_clocks_are_summed_up_where_they_were_read():
    samples = [{"sm_mhz": 1500.0}, {}, {"sm_mhz": 1980.0, "power_w": 300.0}, {"sm_mhz": 1700.0}]
    assert gpu_device.summary_of_clocks(samples) == {
        "sm_mhz_min": 1500.0, "sm_mhz_median": 1700.0, "sm_mhz_max": 1980.0,
        "power_w_min": 300.0, "power_w_median": 300.0, "power_w_max": 300.0,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("length", "memory", "special", "memory_back", "issue"),
    [(16, 0.036, 0.151, 0.065, 0.272), (64, 0.144, 0.602, 0.261, 1.09), (256, 0.577, 2.41, 1.05, 4.35)],
)
def test_floors_are_those_worked_out_by_hand(length, memory, special, memory_back, issue):
    """In ms, for 132 multiprocessors at 1.755 GHz and 4.3 TB/s, to the two or three digits that were written down."""
    found = {"multiprocessors": 132, "copy_bytes_per_second": 4.3e12}
    shape = Shape(4096, 224, length, 16)
    forward = gpu_floors(shape, "forward", 2, found, 1755.0)
    backward = gpu_floors(shape, "backward", 2, found, 1755.0)
    assert 1e3 * forward["memory"] == pytest.approx(memory, rel=0.02)
    assert 1e3 * forward["special functions"] == pytest.approx(special, rel=0.01)
    assert 1e3 * backward["memory"] == pytest.approx(memory_back, rel=0.02)
    assert 1e3 * backward["issue"] == pytest.approx(issue, rel=0.01)
    assert gpu_floors(shape, "forward", 2, found, 3510.0)["special functions"] == forward["special functions"] / 2
