"""What is measured of layers, in processes of their own (`benchmarks.child`).

layer_alone      "layer", "modes": one layer at a shape, its memory and about how long a call takes
layers_in_turns  "layers": {mode: [name, ...]}: all of a shape, gated and timed in turns

Both take "shape", "device", "threads" and "budget_seconds", the second "launches" too.
"""

import time
from collections.abc import Callable
from functools import partial

import torch

from benchmarks.layers.candidates import BASE, MODES, Shape, candidate_named
from benchmarks.layers.case import Buffers, Case, gate, truths
from benchmarks.measure import timing
from benchmarks.measure.failures import failure
from benchmarks.measure.meter import Meter, meter_of
from ssmvdm import process_memory
from ssmvdm.saved import count_parameters, saved_bytes

PEAKS = 2


def alone(request: dict) -> dict:
    """{mode: {"status", "detail", "peak_bytes", "call_seconds"}, "parameters"}; of training "saved_bytes" too."""
    meter_of(request["device"]).be_exact()
    _keep_within_free_memory(request["device"])
    shape, candidate = Shape(**request["shape"]), candidate_named(request["layer"])
    least = Case(candidate, Buffers(Shape(shape.level, 1 << (shape.level - 1), 2), request["device"]))
    answer = {mode: _attempt(getattr(least, mode)) for mode in request["modes"]}  # loads libraries, starts threads
    del least
    case = Case(candidate, Buffers(shape, request["device"]))
    _attempt(case.inference)  # what is compiled is compiled here
    for mode in request["modes"]:
        if answer[mode]["status"] == "ok":
            answer[mode] = _attempt(partial(_peaks, case, mode, request["budget_seconds"]))
    return answer | {"parameters": count_parameters(case.layer)}


def _keep_within_free_memory(device: str) -> None:
    """Allocations beyond it fail. A GPU's are limited by itself, and its driver maps more memory than it uses."""
    limit = process_memory.affordable_bytes()
    if device == "cpu" and limit is not None:
        process_memory.limit_further_bytes(limit)


def _attempt(function: Callable[[], object]) -> dict:
    """Its answer if that is a dictionary, with the status "ok", or why there is none."""
    try:
        answer = function()
    except Exception as error:  # one that breaks or runs out of memory leaves the others to be measured
        return failure(error)
    return {"status": "ok", "detail": ""} | (answer if isinstance(answer, dict) else {})


def _peaks(case: Case, mode: str, budget_seconds: float) -> dict:
    """Peak memory of a few calls, above the input, the gradient of the output and the weights, which are there before;
    what is returned, gradients included, is part of it."""
    found: dict = {"peak_bytes": [], "call_seconds": float("inf")}
    meter, began = meter_of(case.x.device.type), time.perf_counter()
    while len(found["peak_bytes"]) < PEAKS and time.perf_counter() - began < budget_seconds / (2 * PEAKS):
        before = _start_of_peak(meter)
        start = time.perf_counter()
        if mode == "inference":
            returned = case.inference()
        else:
            forward = partial(case.run, case.x, case.bias)
            found["saved_bytes"], y = saved_bytes(forward, list(case.weights.values()))
            returned = torch.autograd.grad(y, [case.x, *case.weights.values()], case.dy)
            del y
        meter.finish()
        peak = meter.peak() - before
        found["call_seconds"] = min(found["call_seconds"], time.perf_counter() - start)
        found["peak_bytes"].append(peak)
        del returned
    return found


def _start_of_peak(meter: Meter) -> int:
    """Bytes in use, from which on the peak counts."""
    meter.finish()
    meter.release()
    if not meter.reset_peak():
        raise NotImplementedError("this system does not tell a process its peak memory")
    return meter.in_use()


def in_turns(request: dict) -> dict:
    """{"rows": {mode: {name: {"status", "detail", "gate", "seconds", "ratios"}}}, "caches", "clocks"}.

    "seconds": of every launch; "ratios": to the time of bi-S6 in the same turn, if that is measured."""
    process_memory.keep_freed_memory()
    _keep_within_free_memory(request["device"])
    cases: dict[str, Case] = {}
    known: dict[tuple, tuple] = {}  # truths, by the function and its weights
    rows: dict[str, dict] = {}
    with timing.timer_of(request["device"]) as timer:
        buffers = Buffers(Shape(**request["shape"]), request["device"])
        for mode in MODES:
            rows[mode], calls = {}, {}
            for name in request["layers"][mode]:
                rows[mode][name] = row = _attempt(partial(_prepared, timer, name, mode, buffers, cases, known))
                if row["status"] == "ok":
                    calls[name] = row.pop("call")
            try:
                _add_times(timer, calls, rows[mode], request)
            except Exception as error:  # the other mode's rows stay
                for name in calls:
                    rows[mode][name] |= failure(error)
        return {"rows": rows, "caches": timer.caches, "clocks": timer.clocks()}


def _prepared(timer, name: str, mode: str, buffers: Buffers, cases: dict[str, Case], known: dict[tuple, tuple]) -> dict:
    """The row with its gate and, if that has passed, "call", what is to be timed."""
    if name not in cases:
        cases[name] = Case(candidate_named(name), buffers)
    case = cases[name]
    if case.candidate.weights not in known:
        known[case.candidate.weights] = truths(case)
    row = gate(case, mode, known[case.candidate.weights]).as_row()
    return row if row["status"] != "ok" else row | {"call": timer.prepare(getattr(case, mode))}


def _add_times(timer, calls: dict[str, Callable], rows: dict[str, dict], request: dict) -> None:
    """To the rows of what is called."""
    samples = timing.in_turns(timer, calls, request["launches"], request["budget_seconds"])
    for name, blocks in samples.items():
        rows[name]["seconds"] = [seconds for block in blocks for seconds in block]
        if BASE in samples:
            rows[name]["ratios"] = timing.ratios(blocks, samples[BASE])
