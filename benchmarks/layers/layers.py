"""Temporal layers by themselves: `ssmvdm bench layers`.

At every shape each layer first runs alone in a process of its own, which gives its peak memory and about how long a
call takes. Those that can be called often enough within the budget are then timed in turns in one process, behind the
gate. What is too slow, too large or not possible is a row that says so; the others go on.
"""

import math
from collections.abc import Callable
from dataclasses import asdict

from benchmarks.layers.candidates import BASE, MODES, Candidate, Shape, candidate_named
from benchmarks.layers.options import LayerOptions
from benchmarks.measure.children import call_child, environment_of
from benchmarks.measure.journal import Journal

LEAST_CALLS = 3  # that a time counts with
COMPILE_SECONDS = 120.0  # that starting, compiling and gating may take beside the calls
DERIVED = ("place", "channels", "side")  # of a shape
MODE_KEYS = ("status", "detail", "peak_bytes", "saved_bytes")


def measure(options: LayerOptions, advance: Callable[[str, float, float], None], journal: Journal) -> dict:
    """All measurements as one JSON-able dictionary. advance(what comes, work done, work in all) reports progress."""
    shapes, names = options.shapes(), list(options.layers)
    total = sum(_cost(shape) for shape in shapes) * (len(names) + 1)
    advance("layers: environment", 0.0, total)
    result: dict = {
        "schema": 1, "kind": "layers", "environment": environment_of(options.threads, journal, options.device),
        "settings": {
            "layers": names, "base": BASE, "device": options.device, "launches": options.timed_launches(),
            "budget_seconds": options.budget_seconds, "batch": 1, "caches": None,
            "shapes": [asdict(shape) | {name: getattr(shape, name) for name in DERIVED} for shape in shapes],
        },
        "layers": [], "clocks": [],
    }  # fmt: skip
    common = {"device": options.device, "threads": options.threads, "budget_seconds": options.budget_seconds}
    measuring, done = _Measuring(common, options.timed_launches(), journal), 0.0
    for shape in shapes:
        rows = {}
        for candidate in map(candidate_named, names):
            advance(f"layers: {candidate.label}, {shape.place}, {shape.frames} frames", done, total)
            rows[candidate.name] = measuring.alone(candidate, shape)
            done += _cost(shape)
        advance(f"layers: in turns, {shape.place}, {shape.frames} frames", done, total)
        timed = measuring.in_turns(rows, shape)
        done += _cost(shape)
        result["settings"]["caches"] = timed.get("caches") or result["settings"]["caches"]
        if timed.get("clocks"):
            result["clocks"].append({"place": shape.place, "frames": shape.frames} | timed["clocks"])
        place = {"place": shape.place, "frames": shape.frames}
        result["layers"] += [place | {"layer": name, "mode": mode} | row[mode] for name, row in rows.items()
                             for mode in MODES]  # fmt: skip
    advance("layers: done", total, total)
    return result


def _cost(shape: Shape) -> float:
    """Expected work in arbitrary units. For the time left only."""
    return 1e5 + shape.frames * (shape.side * shape.channels) ** 2 / 1e3


class _Measuring:
    """Asks for measurements, and remembers how long calls took at fewer frames."""

    def __init__(self, common: dict, launches: int, journal: Journal):
        self.common, self.launches, self.journal = common, launches, journal
        self.most_seconds = common["budget_seconds"] / LEAST_CALLS  # of a call that is to be timed
        self._took: dict[tuple[str, str, str], list[tuple[int, float]]] = {}  # (place, name, mode) -> (frames, seconds)

    def alone(self, candidate: Candidate, shape: Shape) -> dict[str, dict]:
        """The row of each mode, "ok" if it is to be timed."""
        rows, modes = {}, []
        for mode in MODES:
            expected = expected_seconds(self._took.get((shape.place, candidate.name, mode), []), shape.frames)
            if expected > self.most_seconds:
                rows[mode] = self._too_slow(expected, "expected from fewer frames")
            else:
                modes.append(mode)
        if modes:
            request = {"task": "layer_alone", "layer": candidate.name, "modes": modes, "shape": asdict(shape)}
            timeout = COMPILE_SECONDS + 20 * self.common["budget_seconds"]
            answer = self.journal.answer(request | self.common, lambda request: call_child(request, timeout))
            for mode in modes:
                rows[mode] = self._row(answer, mode, (shape.place, candidate.name, mode), shape.frames)
        return rows

    def _row(self, answer: dict, mode: str, key: tuple[str, str, str], frames: int) -> dict:
        found = answer.get(mode, answer)  # a failure of the process as a whole is one of every mode
        if found["status"] in ("ok", "timeout"):
            seconds = found.get("call_seconds", math.inf)
            self._took.setdefault(key, []).append((frames, seconds))
            if seconds > self.most_seconds:
                return self._too_slow(seconds, "measured")
        row = {name: found[name] for name in MODE_KEYS if name in found}
        return row | ({"parameters": answer["parameters"]} if row["status"] == "ok" else {})

    def _too_slow(self, seconds: float, how: str) -> dict:
        """Without its memory, as what is not timed has not passed the gate either."""
        taken = f"a call takes {seconds:.1f} s ({how})" if math.isfinite(seconds) else "a call did not end in time"
        return {"status": "timeout", "detail": f"{taken}; {self.most_seconds:.1f} s are within the budget"}

    def in_turns(self, rows: dict[str, dict[str, dict]], shape: Shape) -> dict:
        """Adds times and gates to the rows that are ok; the answer of the process."""
        layers = {mode: [name for name, row in rows.items() if row[mode]["status"] == "ok"] for mode in MODES}
        count = sum(map(len, layers.values()))
        if count == 0:
            return {}
        request = {"task": "layers_in_turns", "layers": layers, "shape": asdict(shape), "launches": self.launches}
        timeout = COMPILE_SECONDS + 5 * count * self.common["budget_seconds"]
        answer = self.journal.answer(request | self.common, lambda request: call_child(request, timeout))
        for mode, names in layers.items():
            for name in names:
                found = answer["rows"][mode][name] if "rows" in answer else answer
                if found["status"] == "ok":
                    rows[name][mode] |= found
                else:  # without what was measured of it before: that is not known to be right
                    gate = {"gate": found["gate"]} if "gate" in found else {}
                    rows[name][mode] = {"status": found["status"], "detail": found["detail"]} | gate
        return answer


def expected_seconds(took: list[tuple[int, float]], frames: int) -> float:
    """Of a call at so many frames from (frames, seconds) at fewer: as the last two lead on, at least linearly; zero
    where nothing is known."""
    if not took:
        return 0.0
    (count, seconds), growth = took[-1], 1.0
    if len(took) > 1:
        (before, faster), ratio = took[-2], took[-1][0] / took[-2][0]
        growth = max(1.0, math.log(seconds / faster) / math.log(ratio)) if before < count else 1.0
    return seconds * (frames / count) ** growth
