"""The bidirectional scan against its rivals: `ssmvdm bench scan`. A shape is measured in a process of its own
(`scan_tasks`), so that one that runs out of memory or time is a row like any other."""

import math
import time
from collections.abc import Callable
from functools import partial
from statistics import median

from benchmarks.kernels.floors import cpu_floors, gpu_floors
from benchmarks.kernels.scan_options import BACKENDS, BASE_LAYOUT, NOT_BEGUN, ScanOptions, our_name, our_row
from benchmarks.kernels.shapes import MODES, NamedShape, Shape, shape_named
from benchmarks.measure.children import call_child, environment_of
from benchmarks.measure.journal import Journal
from ssmvdm.process_memory import GIB, affordable_bytes

SHAPE_TIMEOUT = 240.0  # seconds
S4D_FORMS = ("s4d-fft", "s4d-scan")
SWEEP_RIVALS = ("mamba-ssm", *S4D_FORMS, "sdpa-8x64", "sdpa-equal", "compiled")  # within a few times of ours
TOLD = ("keeps_freed_memory", "caches", "clocks")  # of a shape besides its rows
ITEM_BYTES = {"float32": 4, "bfloat16": 2, "float16": 2}


def measure(options: ScanOptions, advance: Callable[[str, float, float], None], journal: Journal) -> dict:
    """All measurements as one JSON-able dictionary."""
    until = time.monotonic() + options.time_limit
    threads, device, dtypes = options.threads[-1], options.device, options.storage_types()
    named = [shape_named(name, options.states) for name in options.shapes]
    remembered = [shape for shape in named if not shape.is_sweep]
    total = float(len(named) + len(remembered))
    advance("scan: environment", 0.0, total)
    environment = environment_of(threads, journal, device)
    rates = journal.answer({"task": "rates", "threads": threads}, call_child) if device == "cpu" else {}
    result: dict = {
        "schema": 1, "kind": "scan", "environment": environment,
        "settings": {"device": device, "states": options.states, "dtypes": list(dtypes),
                     "layouts": list(options.layouts), "threads": list(options.threads),
                     "launches": options.timed_launches(), "budget_seconds": options.budget_seconds,
                     "base": our_name(BACKENDS[device][0], dtypes[0]), "caches": None,
                     "shapes": {x.name: vars(x.shape) | {"source": x.source, "is_sweep": x.is_sweep} for x in named}},
        "rates": rates, "times": [], "threads": [], "memory": [], "clocks": [],
    }  # fmt: skip
    for index, shape in enumerate(remembered):
        advance(f"scan: peak memory, {shape.name}", float(index), total)
        for name in ("ours", *(name for name in S4D_FORMS if name in options.compared())):
            request = {"task": "scan_peak", "threads": threads, "device": device, "shape": vars(shape.shape),
                       "candidate": name, "backend": BACKENDS[device][0], "dtype": dtypes[0]}  # fmt: skip
            answer = journal.answer(request, call_child) if time.monotonic() < until else NOT_BEGUN
            row = {"shape": shape.name, "name": name, "status": "ok", "detail": ""}
            result["memory"].append(row | answer)
    for index, shape in enumerate(sorted(named, key=partial(_compiles, options))):
        advance(f"scan: {shape.name}", float(len(remembered) + index), total)
        answer = _measured(options, shape, journal, until, 1 / (len(named) - index))
        for section in ("times", "threads"):
            result[section] += [{"shape": shape.name} | row for row in answer[section]]
        result["settings"]["keeps_freed_memory"] = answer.get("keeps_freed_memory", options.keep_freed_memory)
        result["settings"]["caches"] = answer.get("caches") or result["settings"]["caches"]
        if answer.get("clocks"):
            result["clocks"].append({"shape": shape.name} | answer["clocks"])
    _add_shares(result, {shape.name: shape.shape for shape in named})
    return result


def _measured(options: ScanOptions, named: NamedShape, journal: Journal, until: float, share: float) -> dict:
    """What `scan_tasks.shape_rows` answers, within a share of the time that is left. A candidate that ends the process
    has rows that say so, and another process goes on with those after it, unless it is the first of ours, which has
    the rows too where nothing is measured."""
    shape, device = named.shape, options.device
    variants = _variants(options, named.is_sweep)
    request = {
        "task": "scan_shape", "device": device, "threads": options.threads[-1], "shape": vars(shape), "ours": variants,
        "rivals": [name for name in options.compared() if _takes_part(name, named)],
        "mamba": options.mamba and str(options.mamba),
        "thread_counts": [] if named.is_sweep or device != "cpu" else list(options.threads),
        "compiled_length": options.compiled_length,
        "launches": options.timed_launches(), "budget_seconds": options.budget_seconds,
        "keep_freed_memory": options.keep_freed_memory,
    }  # fmt: skip
    least = shape.least_bytes(ITEM_BYTES[variants[0][1]])
    first = our_row(*variants[0])
    times: list[dict] = []
    told: dict = {}
    while True:
        known = list(dict.fromkeys(row["name"] for row in times))
        within = partial(_within, least=least, seconds=share * (until - time.monotonic()))
        has_time = time.monotonic() < until
        answer = journal.answer(request | {"without": known}, within) if has_time else NOT_BEGUN
        new = answer.get("times", [])
        times += new
        told |= {key: answer[key] for key in TOLD if answer.get(key) not in (None, {})}
        if "status" not in answer:
            return answer | told | {"times": times}
        ended = {"status": answer["status"], "detail": answer["detail"]}
        about = answer.get("unfinished") or (first if not times else None)
        if about:
            times += [about | {"mode": mode} | ended for mode in MODES]
        lacks_base = about == first or any((row["name"], row["status"]) == (first["name"], "error") for row in times)
        if lacks_base or not (about or new):
            return told | {"times": times, "threads": []}


def _variants(options: ScanOptions, is_sweep: bool) -> list[tuple[str, str, str]]:
    """(backend, dtype, layout) of ours; the first is what all else is compared with."""
    first, *more = options.storage_types()
    layouts = [] if is_sweep else [layout for layout in options.layouts if layout != BASE_LAYOUT]
    found = [(backend, first, layout) for backend in BACKENDS[options.device] for layout in (BASE_LAYOUT, *layouts)]
    return found if is_sweep else [*found, *((found[0][0], dtype, BASE_LAYOUT) for dtype in more)]


def _takes_part(rival: str, named: NamedShape) -> bool:
    return not named.is_alone and (not named.is_sweep or rival in SWEEP_RIVALS)


def _compiles(options: ScanOptions, named: NamedShape) -> bool:
    """Such shapes come last: torch.compile takes long, and a run whose time is up then has the others."""
    takes_part = "compiled" in options.compared() and _takes_part("compiled", named)
    return takes_part and named.shape.length <= options.compiled_length


def _within(request: dict, least: int, seconds: float) -> dict:
    """The child's answer within a time and, on a CPU, the memory that is free now, unless that is less than `least`."""
    timeout = min(SHAPE_TIMEOUT, seconds)
    limit = affordable_bytes() if request["device"] == "cpu" else None
    if limit is not None and least > limit:
        detail = f"inputs, output and their gradients take {least / GIB:.1f} GiB, {limit / GIB:.1f} GiB may be taken"
        return {"status": "out of memory", "detail": detail}
    return call_child(request | {"memory_limit_bytes": limit, "seconds": 0.75 * timeout}, timeout)


def _add_shares(result: dict, shapes: dict[str, Shape]) -> None:
    """Of our rows: what binds alone would take, as a share of the time taken. Of backward alone, the difference of the
    two modes, where that mode has it."""
    clocks = {row["shape"]: row.get("sm_mhz_median") for row in result["clocks"]}
    ours = [row for row in result["times"] if row["is_ours"] and "seconds" in row]
    rows = {(row["shape"], row["name"], row["mode"]): row for row in ours}
    for (name, candidate, mode), row in rows.items():
        seconds, forward = median(row["seconds"]), rows.get((name, candidate, "forward"))
        if mode == "forward+backward":
            seconds -= median(forward["seconds"]) if forward else math.inf
        of, itemsize = mode.rpartition("+")[2], ITEM_BYTES[row["dtype"]]
        if result["settings"]["device"] == "cpu":
            floors = cpu_floors(shapes[name], of, itemsize, result["rates"])
        elif clocks.get(name):
            floors = gpu_floors(shapes[name], of, itemsize, result["environment"], clocks[name])
        else:
            floors = {}
        row["shares_of_floor"] = {key: floor / seconds for key, floor in floors.items() if seconds > 0}
