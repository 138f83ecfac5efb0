"""Times of short calls on any device: candidates take turns, each in blocks of launches.

A timer makes a function ready (`prepare`), says in how many turns its launches are taken (`turns`) and times a block of
them (`block`, seconds each). Everything else, order, budgets and statistics, knows no device.
"""

import contextlib
import time
from collections.abc import Callable, Iterator
from functools import partial
from statistics import median

import torch

from benchmarks.measure import gpu_device

WARM_UPS = 3
SETTLED_S = 0.015  # for which a call is repeated on a CPU, whose caches hold another candidate's data when it begins
TURNS = 10  # on a GPU, where a launch is too short to change candidates after each
DISTURBED = 1.2  # a median over the least, from which a candidate has more turns than its budget allows,
AT_MOST = 3  # times the least number of turns
CLOCK_PERIOD_S = 1.0  # asking for the clocks costs some 50 ms of the host


class HostTimer:
    """Calls that have done their work when they return, by the host's clock. A launch is a turn of its own: calls for
    SETTLED_S, one at least, and their median."""

    caches = "warm"

    def __init__(self, clock: Callable[[], float] = time.perf_counter):
        self.clock = clock

    def prepare(self, function: Callable[[], object]) -> Callable[[], object]:
        function()
        return function

    def turns(self, launches: int) -> int:
        return launches

    def block(self, launch: Callable[[], object], launches: int) -> list[float]:
        return [self._settled(launch) for _ in range(launches)]

    def _settled(self, launch: Callable[[], object]) -> float:
        found, began = [], self.clock()
        while not found or self.clock() - began < SETTLED_S:
            start = self.clock()
            launch()
            found.append(self.clock() - start)
        return median(found)

    def clocks(self) -> dict[str, float]:
        return {}


class CudaTimer:
    """A function is captured once as a CUDA graph, whose launches return the buffers that it writes. Before each replay
    a buffer of four times the L2 cache is written, which takes the device longer than the host needs to enqueue what
    follows: events around the replay see no gaps. The clocks are read behind a block, while launches that are not timed
    go on."""

    caches = "cold"

    def __init__(self):
        properties = torch.cuda.get_device_properties(torch.cuda.current_device())
        self.stream = torch.cuda.current_stream()
        if self.stream == torch.cuda.default_stream():
            raise ValueError("CudaTimer: expected a stream of its own to be current, got the default stream, which "
                             "cannot be captured")  # fmt: skip
        self._flush = torch.empty(4 * properties.L2_cache_size, dtype=torch.uint8, device="cuda")
        self._samples: list[dict] = []
        self._asked = 0.0

    def prepare(self, function: Callable[[], object]) -> Callable[[], object]:
        for _ in range(WARM_UPS):
            function()
        torch.cuda.synchronize()
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph, stream=self.stream):
            returned = function()

        def launch(kept: Callable[[], object] = function) -> object:  # with the tensors that the graph reads
            graph.replay()
            return returned

        launch()
        torch.cuda.synchronize()
        return launch

    def turns(self, launches: int) -> int:
        return min(launches, TURNS)

    def block(self, launch: Callable[[], object], launches: int) -> list[float]:
        events = [tuple(torch.cuda.Event(enable_timing=True) for _ in range(2)) for _ in range(launches)]
        for start, end in events:
            self._flush.zero_()
            start.record()
            launch()
            end.record()
        if time.monotonic() - self._asked > CLOCK_PERIOD_S:
            self._samples.append(gpu_device.query(gpu_device.CLOCK_FIELDS, partial(_untimed, launch)))
            self._asked = time.monotonic()
        torch.cuda.synchronize()
        return [start.elapsed_time(end) / 1e3 for start, end in events]

    def clocks(self) -> dict[str, float]:
        """Of the blocks so far."""
        return gpu_device.summary_of_clocks(self._samples)


def _untimed(launch: Callable[[], object]) -> None:
    for _ in range(TURNS):
        launch()
    torch.cuda.synchronize()


@contextlib.contextmanager
def timer_of(device: str) -> Iterator[HostTimer | CudaTimer]:
    """A timer, and on a GPU a stream of its own for all that happens inside."""
    if device == "cpu":
        yield HostTimer()
        return
    with torch.cuda.stream(torch.cuda.Stream()):
        yield CudaTimer()


def once(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def in_turns(
    timer, candidates: dict, launches: int, budget_s: float, least_turns: int = 1
) -> dict[str, list[list[float]]]:
    """Seconds of every launch, by candidate and turn. candidates: prepared functions.

    In each of the timer's turns every candidate is launched launches / turns times, rounded up. One that has used up
    its budget sits out the rest, but not before it has had `least_turns`, and where most of its turns were disturbed up
    to AT_MOST times as many; what a block costs is known from one launch before, so that even a slow candidate's first
    turn keeps to the budget.
    """
    samples: dict = {name: [] for name in candidates}
    spent = dict.fromkeys(candidates, 0.0)
    length, turns = {}, timer.turns(launches)
    for name, launch in candidates.items():
        (seconds,) = timer.block(launch, 1)
        length[name] = max(1, min(-(-launches // turns), int(budget_s / max(seconds, 1e-9))))
    for turn in range(turns):
        for name, launch in candidates.items():
            extra = turn < AT_MOST * least_turns and _is_disturbed(samples[name])
            if turn < least_turns or spent[name] < budget_s or extra:
                block = timer.block(launch, length[name])
                samples[name].append(block)
                spent[name] += sum(block)
    return samples


def _is_disturbed(blocks: list[list[float]]) -> bool:
    medians = [median(block) for block in blocks]
    return bool(medians) and median(medians) > DISTURBED * min(medians)


def ratio(theirs: list[list[float]], ours: list[list[float]]) -> float:
    """Median of `ratios`."""
    return median(ratios(theirs, ours))


def ratios(theirs: list[list[float]], ours: list[list[float]]) -> list[float]:
    """Of every turn that both took part in: theirs / ours, each the median of its block."""
    return [median(a) / median(b) for a, b in zip(theirs, ours, strict=False)]
