"""What the scan benchmark measures of a shape, in a process of its own (`benchmarks.child`).

Candidates come one after the other. Each is gated on the tensors that are timed, on a GPU also in what a replay writes,
and timed in turns with the first of ours, which alone stays in memory. A rival that is too slow or too large for a
shape runs on fewer sequences, which the results say, and its time is extrapolated: a part that does not depend on them,
on a CPU known from two small runs, and a part for each sequence.
"""

import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.kernels import rivals
from benchmarks.kernels.scan_case import (
    gate_ours,
    gate_replay,
    gate_rival,
    gradients,
    like_output,
    our_ends,
    our_tensors,
    rival_ends,
    run_ours,
)
from benchmarks.kernels.scan_options import NOT_BEGUN, our_row
from benchmarks.kernels.shapes import MODES, Shape
from benchmarks.measure import timing
from benchmarks.measure.failures import failure
from benchmarks.measure.meter import meter_of
from ssmvdm import process_memory
from ssmvdm.process_memory import GIB

CPU_RIVAL_BYTES = 6 * GIB
GPU_MEMORY_SHARE = 0.6  # of the free memory for one rival
PROBE_SEQUENCES = (8, 32)
MOST_FOR_HALF = 256  # sequences, however small their part of a call is
WHOLE_CALL = 2.0  # budgets: fewer sequences fit caches that all of them do not
LEAST_TURNS = 3  # that a slow candidate has on a CPU, where a turn is one launch

Calls = dict[str, Callable[[], object]]  # by mode
Ends = Callable[[str, torch.Tensor], torch.Tensor]  # a few sequences of what is returned by that name


def shape_rows(request: dict) -> Iterator[dict]:
    """{"times": rows, "threads": rows, "keeps_freed_memory", "caches", "clocks"} of one shape, in parts: a candidate
    each, of which "unfinished" says what all rows say. On a GPU the process ends behind a candidate that broke, which
    may have left device or allocator unusable for those after it; "unfinished" is None then.

    request: {"device", "shape", "ours": [(backend, dtype, layout)], "rivals", "without": names that are known already,
    "mamba", "compiled_length", "threads", "thread_counts", "launches", "budget_seconds", "keep_freed_memory",
    "memory_limit_bytes", "seconds"}: in so many candidates may begin."""
    keeps = request["keep_freed_memory"] and process_memory.keep_freed_memory()
    found: dict = {"times": [], "threads": [], "keeps_freed_memory": keeps}
    if request["memory_limit_bytes"] is not None:
        process_memory.limit_further_bytes(request["memory_limit_bytes"])
    with timing.timer_of(request["device"]) as timer:
        shape = TimedShape(request, timer)
        for about, rows in shape.candidates():
            if shape.has_failed:
                yield found | _told(timer) | {"unfinished": None}
                raise SystemExit(1)
            yield found | _told(timer) | {"unfinished": about}
            found["times"] += rows()
        if len(request["thread_counts"]) > 1:
            found["threads"] = shape.scaling()
        yield found | _told(timer)


def _told(timer) -> dict:
    return {"caches": timer.caches, "clocks": timer.clocks()}


def calls(run: Callable, tensors: dict) -> Calls:
    """What is timed."""
    with torch.no_grad():
        dy = like_output(run(tensors))

    def forward():
        with torch.no_grad():
            return run(tensors)

    return {"forward": forward, "forward+backward": lambda: gradients(run, tensors, dy)}


def _returned(found) -> dict[str, torch.Tensor]:
    """What a call returns, by name."""
    y, grads = found if isinstance(found, tuple) else (found, {})
    return {"y": y} | grads


def rival_row(rival: rivals.Rival) -> dict:
    return {"name": rival.name, "label": rival.label, "is_ours": False}


class TimedShape:
    """Makes the rows of one candidate after the other, one for each mode."""

    def __init__(self, request: dict, timer):
        self.request, self.timer = request, timer
        self.device, self.shape = request["device"], Shape(**request["shape"])
        self.until = time.monotonic() + request["seconds"]
        self.base: Calls = {}  # prepared, of the first of ours
        self.free_bytes = 0  # of a GPU, before a candidate takes any
        self.has_failed = False  # a candidate, on a GPU

    def candidates(self) -> Iterator[tuple[dict, Callable[[], list[dict]]]]:
        """(what all of its rows say, what measures them) of each that is not known; the first of ours is measured once
        more, without rows, if it is."""
        known = self.request["without"]
        for variant in self.request["ours"]:
            about = our_row(*variant)
            if about["name"] not in known:
                yield about, partial(self.ours, *variant)
            elif variant == self.request["ours"][0]:
                self.ours(*variant)
        for rival in rivals.all_rivals(self.request["mamba"] and Path(self.request["mamba"])):
            if rival.name in self.request["rivals"] and rival.name not in known:
                yield rival_row(rival), partial(self.rival, rival)

    def ours(self, backend: str, dtype: str, layout: str) -> list[dict]:
        def prepare(mode: str) -> tuple[dict, Callable, Ends]:
            if not found:
                from ssmvdm_kernels import backends

                if reason := backends.missing(backend):
                    raise NotImplementedError(reason)
                tensors = our_tensors(self.shape, getattr(torch, dtype), layout, self.device)
                run = partial(run_ours, backend=backend)
                found.append((gate_ours(tensors, layout, run).as_row(), calls(run, tensors)))
            return found[0][0], found[0][1][mode], partial(our_ends, layout=layout)

        found: list[tuple[dict, Calls]] = []
        rows, prepared = self._rows(our_row(backend, dtype, layout), prepare)
        if (backend, dtype, layout) == tuple(self.request["ours"][0]):
            self.base = prepared
            return [row | ({"ratio": 1.0} if "seconds" in row else {}) for row in rows]
        return rows

    def rival(self, rival: rivals.Rival) -> list[dict]:
        """On as many sequences as time and memory allow."""
        row, length = rival_row(rival), self.request["compiled_length"]
        if rival.name == "compiled" and self.shape.length > length:
            detail = f"would unroll {self.shape.length} steps; compiled up to {length}"
            return [row | {"mode": mode, "status": "not applicable", "detail": detail} for mode in MODES]

        def prepare(mode: str) -> tuple[dict, Callable, Ends]:
            affordable = self._affordable(rival, mode)
            count = affordable["timed_sequences"]
            if count not in found:
                found.clear()
                tensors = rivals.leaves(rival, replace(self.shape, sequences=count), self._dtype(), self.device)
                found[count] = gate_rival(rival, tensors).as_row(), calls(rival.run, tensors)
            return affordable | found[count][0], found[count][1][mode], partial(rival_ends, rival)

        found: dict[int, tuple[dict, Calls]] = {}
        rows, _ = self._rows(row, prepare, rival.is_optional)
        return rows

    def scaling(self) -> list[dict]:
        """Time of the first of ours on the first number of threads over that on each other one, in turns."""
        rows = []
        counts = self.request["thread_counts"]
        for mode, call in self.base.items():
            pinned = {threads: partial(_pinned, threads, call) for threads in counts}
            samples = self._in_turns(pinned)
            torch.set_num_threads(self.request["threads"])
            for threads in counts[1:]:
                speedups = timing.ratios(samples[counts[0]], samples[threads])
                rows.append({"mode": mode, "threads": threads, "status": "ok", "detail": "", "speedup": speedups})
        return rows

    def _rows(self, row: dict, prepare: Callable, is_optional: bool = False) -> tuple[list[dict], Calls]:
        """(rows, what has been timed). prepare(mode) -> (more of the row, what is called, the ends of what it returns
        by name)."""
        rows, prepared = [], {}
        try:
            self._release()
        except Exception as error:  # the device is broken
            self.has_failed = True
            return [row | {"mode": mode} | failure(error) for mode in MODES], {}
        for mode in MODES:
            if time.monotonic() > self.until:
                rows.append(row | {"mode": mode} | NOT_BEGUN)
                continue
            try:
                more, call, ends = prepare(mode)
                rows.append(row | {"mode": mode} | more)
                if more["status"] == "ok":
                    launch = self._ready(rows[-1], call, ends)
                if rows[-1]["status"] == "ok":
                    prepared[mode] = launch
                    self._time(rows[-1], launch)
            except Exception as error:  # the others go on
                why = failure(error)
                self.has_failed |= self.device != "cpu" and why["status"] == "error"
                if is_optional and why["status"] == "error":
                    why["status"] = "not applicable"
                rows = [x for x in rows if x["mode"] != mode] + [row | {"mode": mode} | why]
        return rows, prepared

    def _ready(self, row: dict, call: Callable[[], object], ends: Ends) -> Callable[[], object]:
        """What is timed. On a GPU that is another thing than the call: the row tells if it does not do the same."""
        if self.device == "cpu":
            return self.timer.prepare(call)
        called = {name: ends(name, x).clone() for name, x in _returned(call()).items()}
        launch = self.timer.prepare(call)
        for buffer in _returned(launch()).values():
            buffer.zero_()
        replay = gate_replay(called, {name: ends(name, x) for name, x in _returned(launch()).items()})
        if not replay.has_passed:
            row |= replay.as_row()
        return launch

    def _release(self) -> None:
        """What a GPU has of the candidate before."""
        if self.device != "cpu":
            meter_of(self.device).release()
            self.free_bytes, _ = torch.cuda.mem_get_info()

    def _time(self, row: dict, call: Callable[[], object]) -> None:
        """Adds the seconds of every launch, and the median of their ratios to those of the first of ours."""
        base = self.base.get(row["mode"])
        samples = self._in_turns({"own": call} | ({"base": base} if base else {}))
        sequences, fixed = self.shape.sequences, row.get("fixed_seconds", 0.0)
        scale = sequences / row.get("timed_sequences", sequences)
        own = [[fixed + scale * max(value - fixed, 0.0) for value in block] for block in samples["own"]]
        row["seconds"] = [value for block in own for value in block]
        if base:
            row["ratio"] = timing.ratio(own, samples["base"])

    def _in_turns(self, functions: dict) -> dict[str, list[list[float]]]:
        launches, budget = self.request["launches"], self.request["budget_seconds"]
        return timing.in_turns(self.timer, functions, launches, budget, LEAST_TURNS if self.device == "cpu" else 1)

    def _dtype(self) -> torch.dtype:
        """Of rivals: on a CPU, where they know no other, float32; on a GPU that of ours."""
        return torch.float32 if self.device == "cpu" else getattr(torch, self.request["ours"][0][1])

    def _affordable(self, rival: rivals.Rival, mode: str) -> dict:
        """{"timed_sequences", "fixed_seconds"}: all sequences if a call on them keeps to the budget and the memory,
        else fewer, and the part of the time that does not depend on their number."""
        each = rival.bytes_per_element * self.shape.channels * self.shape.length
        if self.device == "cpu":
            return _by_time(rival, self.shape, mode, self.request["budget_seconds"], CPU_RIVAL_BYTES // each)
        count = self.shape.sequences
        while count * each > GPU_MEMORY_SHARE * self.free_bytes and count % 2 == 0:
            count //= 2
        return {"timed_sequences": count, "fixed_seconds": 0.0}


def _pinned(threads: int, call: Callable[[], object]) -> object:
    torch.set_num_threads(threads)
    return call()


def _by_time(rival: rivals.Rival, shape: Shape, mode: str, budget: float, by_memory: int) -> dict:
    """As `TimedShape._affordable`: all, if a call on them takes no more than WHOLE_CALL budgets, else as many sequences
    as three rounds and a warm-up have time for, or as make up half of a call, so that their part can be told."""
    few, more = (min(count, shape.sequences) for count in PROBE_SEQUENCES)
    seconds = {}
    for count in (few, more):
        call = calls(rival.run, rivals.leaves(rival, replace(shape, sequences=count)))[mode]
        call()
        seconds[count] = min(timing.once(call) for _ in range(3))
    if few == more:
        return {"timed_sequences": shape.sequences, "fixed_seconds": 0.0}
    each = max((seconds[more] - seconds[few]) / (more - few), 1e-9)
    fixed = max(seconds[few] - few * each, 0.0)
    whole = fixed + each * shape.sequences
    part = max((budget / 4 - fixed) / each, min(fixed / each, MOST_FOR_HALF))
    by_time = shape.sequences if whole <= WHOLE_CALL * budget else int(part)
    return {"timed_sequences": min(shape.sequences, max(more, min(by_time, by_memory))), "fixed_seconds": fixed}
