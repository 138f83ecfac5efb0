"""What the scan benchmark measures in processes of its own (`benchmarks.child`): rates of the machine, and a shape.

Everything that is compared is timed in turns in one process (see `timing`) after it has passed its gate on the timed
buffers. A rival that is too slow or too large for a shape runs on fewer sequences, which the results say, and its time
is extrapolated: a part that does not depend on them, known from two small runs, and a part for each sequence.
"""

from collections.abc import Callable
from dataclasses import replace

import torch

from benchmarks.kernels import rivals
from benchmarks.kernels.scan_case import (
    gate_ours,
    gate_rival,
    gradients,
    like_output,
    our_tensors,
    run_ours,
)
from benchmarks.kernels.scan_options import BASE_LAYOUT, our_name
from benchmarks.kernels.shapes import MODES, Shape
from benchmarks.measure import process_memory, timing
from benchmarks.measure.failures import failure
from benchmarks.shapes import GIB

RIVAL_MEMORY_BYTES = 6 * GIB
PROBE_SEQUENCES = (8, 32)


def rates(request: dict) -> dict:
    """{"exponentials_per_second", "bytes_per_second"} of this machine; the first None where there is no probe."""
    threads = request["threads"]
    return {
        "exponentials_per_second": timing.exponentials_per_second(threads),
        "bytes_per_second": timing.bytes_per_second(),
    }


def shape_rows(request: dict) -> dict:
    """{"times": rows, "threads": rows, "keeps_freed_memory"} of one shape. request: {"shape", "dtypes", "layouts",
    "rivals", "compiled_length", "threads", "thread_counts", "rounds", "budget_seconds", "memory_limit_bytes"}."""
    is_warm = process_memory.keep_freed_memory()
    if request["memory_limit_bytes"] is not None:
        process_memory.limit_further_bytes(request["memory_limit_bytes"])
    shape = Shape(**request["shape"])
    dtypes, layouts = request["dtypes"], request["layouts"]
    variants = [(dtypes[0], BASE_LAYOUT)]
    variants += [(dtypes[0], layout) for layout in layouts if layout != BASE_LAYOUT]
    variants += [(dtype, BASE_LAYOUT) for dtype in dtypes[1:]]
    prepared = [_ours(shape, *variant) for variant in variants]
    times = [row for mode in MODES for row in _timed(request, shape, prepared, mode)]
    scaling = _scaling(request, prepared[0][1]) if len(request["thread_counts"]) > 1 else []
    return {"times": times, "threads": scaling, "keeps_freed_memory": is_warm}


def calls(run: Callable, tensors: dict) -> dict[str, Callable[[], object]]:
    """What is timed, by mode."""
    with torch.no_grad():
        dy = like_output(run(tensors))

    def forward():
        with torch.no_grad():
            return run(tensors)

    return {"forward": forward, "forward+backward": lambda: gradients(run, tensors, dy)}


def _ours(shape: Shape, dtype: str, layout: str) -> tuple[dict, dict[str, Callable]]:
    """(row, calls by mode)."""
    tensors = our_tensors(shape, getattr(torch, dtype), layout)
    row = {"name": our_name(dtype, layout), "label": f"ours, {layout}, {dtype}", "is_ours": True}
    return row | gate_ours(tensors, layout).as_row(), calls(run_ours, tensors)


def _timed(request: dict, shape: Shape, prepared: list, mode: str) -> list[dict]:
    """Rows of ours and of the rivals, the first of ours timed beside every rival. A rival's tensors are gone before the
    next one's are made."""
    base_row, base_calls = prepared[0]
    samples = _in_turns(request, {row["name"]: by_mode[mode] for row, by_mode in prepared if row["status"] == "ok"})
    rows = [_row(row, mode, samples.get(row["name"]), samples.get(base_row["name"])) for row, _ in prepared]
    for rival in rivals.RIVALS:
        if rival.name not in request["rivals"]:
            continue
        row, call = _rival(rival, shape, request, mode)
        turns = {"base": base_calls[mode]} if base_row["status"] == "ok" else {}
        found = _in_turns(request, turns | {"own": call}) if call else {}
        rows.append(_row(row, mode, found.get("own"), found.get("base"), shape.sequences))
    return rows


def _in_turns(request: dict, functions: dict[str, Callable]) -> dict[str, list]:
    return timing.interleaved(functions, request["rounds"], request["budget_seconds"])


def _row(row: dict, mode: str, own: list | None, base: list | None, sequences: int = 1) -> dict:
    """With the seconds of every round, and the median of their ratios to those of the first of ours."""
    row = row | {"mode": mode}
    if own is not None:
        scale, fixed = sequences / row.get("timed_sequences", sequences), row.get("fixed_seconds", 0.0)
        own = [None if value is None else fixed + scale * max(value - fixed, 0.0) for value in own]
        row["seconds"] = [value for value in own if value is not None]
        if base is not None:
            row["ratio"] = timing.ratio(own, base)
    return row


def _rival(rival: rivals.Rival, shape: Shape, request: dict, mode: str) -> tuple[dict, Callable | None]:
    """A rival on as many sequences as time and memory allow, gated: (row, what is timed, if anything)."""
    row = {"name": rival.name, "label": rival.label, "is_ours": False}
    if rival.name == "compiled" and shape.length > request["compiled_length"]:
        detail = f"would unroll {shape.length} steps; compiled up to {request['compiled_length']}"
        return row | {"status": "not applicable", "detail": detail}, None
    try:
        row |= _affordable(rival, shape, request, mode)
        tensors = rivals.leaves(rival, replace(shape, sequences=row["timed_sequences"]))
        row |= gate_rival(rival, tensors).as_row()
        return row, calls(rival.run, tensors)[mode] if row["status"] == "ok" else None
    except Exception as error:  # the others go on
        found = failure(error)
        if rival.is_optional and found["status"] == "error":
            found["status"] = "not applicable"
        return row | found, None


def _affordable(rival: rivals.Rival, shape: Shape, request: dict, mode: str) -> dict:
    """{"timed_sequences", "fixed_seconds"}: all sequences if a call on them keeps to the budget, else as many as three
    rounds and a warm-up have time and memory for, and the part of the time that does not depend on their number."""
    few, more = (min(count, shape.sequences) for count in PROBE_SEQUENCES)
    seconds = {}
    for count in (few, more):
        call = calls(rival.run, rivals.leaves(rival, replace(shape, sequences=count)))[mode]
        call()
        seconds[count] = min(timing.once(call) for _ in range(2))
    if few == more:
        return {"timed_sequences": shape.sequences, "fixed_seconds": 0.0}
    each = max((seconds[more] - seconds[few]) / (more - few), 1e-9)
    fixed = max(seconds[few] - few * each, 0.0)
    budget = request["budget_seconds"]
    by_time = shape.sequences if fixed + each * shape.sequences <= budget else int((budget / 4 - fixed) / each)
    by_memory = RIVAL_MEMORY_BYTES // (rival.bytes_per_element * shape.channels * shape.length)
    return {"timed_sequences": min(shape.sequences, max(more, min(by_time, by_memory))), "fixed_seconds": fixed}


def _scaling(request: dict, by_mode: dict[str, Callable]) -> list[dict]:
    """Time on the first number of threads over that on each other one, in turns."""
    rows = []
    counts = request["thread_counts"]
    for mode, call in by_mode.items():

        def pinned(threads: int, call=call):
            torch.set_num_threads(threads)
            return call()

        functions = {threads: (lambda threads=threads: pinned(threads)) for threads in counts}
        samples = timing.interleaved(functions, request["rounds"], request["budget_seconds"])
        torch.set_num_threads(request["threads"])
        for threads in counts[1:]:
            speedups = [a / b for a, b in zip(samples[counts[0]], samples[threads], strict=True) if a and b]
            rows.append({"mode": mode, "threads": threads, "status": "ok", "detail": "", "speedup": speedups})
    return rows
