"""The bidirectional scan on the CPU against its rivals: `ssmvdm bench scan`. A shape is measured in a process of its
own (`scan_tasks`), so that one that runs out of memory or time is a row like any other."""

from collections.abc import Callable
from functools import partial
from statistics import median

from benchmarks.kernels.scan_options import ScanOptions, our_name
from benchmarks.kernels.shapes import MODES, NamedShape, shape_named
from benchmarks.measure.children import call_child, environment_of
from benchmarks.measure.journal import Journal
from benchmarks.measure.process_memory import affordable_bytes
from benchmarks.shapes import GIB

SHAPE_TIMEOUT = 240.0  # seconds
S4D_FORMS = ("s4d-fft", "s4d-scan")
SWEEP_RIVALS = (*S4D_FORMS, "sdpa-8x64", "sdpa-equal", "compiled")  # within a few times of ours
BACKWARD_FLOOR = 7.5 / 3.5  # operations of a backward step over those of a forward step, per element and state
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def measure(options: ScanOptions, advance: Callable[[str, float, float], None], journal: Journal) -> dict:
    """All measurements as one JSON-able dictionary."""
    threads = options.threads[-1]
    named = [shape_named(name, options.states) for name in options.shapes]
    remembered = [shape for shape in named if not shape.is_sweep]
    total = float(len(named) + len(remembered))
    advance("scan: environment", 0.0, total)
    result = {
        "schema": 1, "kind": "scan", "environment": environment_of(threads, journal),
        "settings": {"states": options.states, "dtypes": list(options.dtypes), "layouts": list(options.layouts),
                     "threads": list(options.threads), "rounds": options.rounds,
                     "budget_seconds": options.budget_seconds,
                     "base": our_name(options.dtypes[0]),
                     "shapes": {x.name: vars(x.shape) | {"source": x.source, "is_sweep": x.is_sweep} for x in named}},
        "rates": journal.answer({"task": "scan_rates", "threads": threads}, call_child),
        "times": [], "threads": [], "memory": [],
    }  # fmt: skip
    for index, shape in enumerate(named):
        advance(f"scan: {shape.name}", float(index), total)
        answer = _measured(options, shape, journal)
        for section in ("times", "threads"):
            result[section] += [{"shape": shape.name} | row for row in answer[section]]
        result["settings"]["keeps_freed_memory"] = answer.get("keeps_freed_memory", False)
    _add_shares(result)
    for index, shape in enumerate(remembered):
        advance(f"scan: peak memory, {shape.name}", float(len(named) + index), total)
        for name in ("ours", *(name for name in S4D_FORMS if name in options.rivals)):
            request = {"task": "scan_peak", "threads": threads, "shape": vars(shape.shape), "candidate": name}
            answer = journal.answer(request | {"dtype": options.dtypes[0]}, call_child)
            row = {"shape": shape.name, "name": name, "status": "ok", "detail": ""}
            result["memory"].append(row | answer)
    return result


def _measured(options: ScanOptions, named: NamedShape, journal: Journal) -> dict:
    """What `scan_tasks.shape_rows` answers; if that is a failure as a whole, the first of ours has it."""
    shape = named.shape
    request = {
        "task": "scan_shape", "threads": options.threads[-1], "shape": vars(shape),
        "dtypes": list(options.dtypes[:1] if named.is_sweep else options.dtypes),
        "layouts": [] if named.is_sweep else list(options.layouts),
        "rivals": [name for name in options.rivals if _takes_part(name, named)],
        "thread_counts": [] if named.is_sweep else list(options.threads), "compiled_length": options.compiled_length,
        "rounds": options.rounds, "budget_seconds": options.budget_seconds,
    }  # fmt: skip
    answer = journal.answer(request, partial(_in_memory, least=shape.least_bytes(ITEM_BYTES[options.dtypes[0]])))
    if "times" in answer:
        return answer
    base = {"name": our_name(options.dtypes[0]), "label": "ours", "is_ours": True}
    return {"times": [base | {"mode": mode} | answer for mode in MODES], "threads": []}


def _takes_part(rival: str, named: NamedShape) -> bool:
    return not named.is_alone and (not named.is_sweep or rival in SWEEP_RIVALS)


def _in_memory(request: dict, least: int) -> dict:
    """The child's answer, within the memory that is free now, unless that is less than `least`."""
    limit = affordable_bytes()
    if limit is not None and least > limit:
        detail = f"inputs, output and their gradients take {least / GIB:.1f} GiB, {limit / GIB:.1f} GiB may be taken"
        return {"status": "out of memory", "detail": detail}
    return call_child(request | {"memory_limit_bytes": limit}, SHAPE_TIMEOUT)


def _add_shares(result: dict) -> None:
    """Of our rows: the time that the exponentials alone, and that the memory traffic alone would take, as shares of the
    time taken. Of backward alone, the difference of the two modes, where that mode has it."""
    shapes = {name: shape_named(name, result["settings"]["states"]).shape for name in result["settings"]["shapes"]}
    rate, bandwidth = (result["rates"].get(key) for key in ("exponentials_per_second", "bytes_per_second"))
    ours = [row for row in result["times"] if row["is_ours"] and "seconds" in row]
    rows = {(row["shape"], row["name"], row["mode"]): row for row in ours}
    for (name, candidate, mode), row in rows.items():
        shape, seconds, work = shapes[name], median(row["seconds"]), 1.0
        if mode == "forward+backward":
            seconds -= median(rows[name, candidate, "forward"]["seconds"])
            work = BACKWARD_FLOOR
        itemsize = ITEM_BYTES[candidate.split()[1]]
        floors = {
            "exponentials": work * shape.exponentials() / rate if rate else None,
            "memory": shape.traffic_bytes(mode.rpartition("+")[2], itemsize) / bandwidth if bandwidth else None,
        }
        row["shares_of_floor"] = {key: floor / seconds for key, floor in floors.items() if floor and seconds > 0}
