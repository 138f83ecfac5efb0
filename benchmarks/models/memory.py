"""Memory and time of training and of sampling, bytes saved for backward, and what fits, per temporal layer and frames.

Every measurement runs in a fresh process and counts only if it passes the gate. What runs out of memory, dies or takes
too long is a result too; the others go on.
"""

from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import median

from benchmarks.measure.children import call_child, environment_of
from benchmarks.measure.journal import Journal
from benchmarks.models.options import MemoryOptions
from benchmarks.models.search import crossing, largest
from ssmvdm.compared import Layer, Network, all_layer_names, layer_named
from ssmvdm.process_memory import GIB, resident_bytes

SECONDS_PER_CONFIGURATION = 5.0  # after which no further repeat begins
COMPARED_FRAMES = 32  # or what is nearest to it, for the comparison of memory modes
MEMORIES_BYTES = (24 * 10**9, 80 * 10**9, 141 * 10**9)  # of GPUs: how many frames would the paper's network have there?
COUNTED = ("saved", "widths", "predicted")


def measure(options: MemoryOptions, advance: Callable[[str, float, float], None], journal: Journal) -> dict:
    """All measurements as one JSON-able dictionary. advance(what comes, work done, work in all) reports progress."""
    layers = tuple(layer_named(name) for name in all_layer_names() if name in options.layers)
    frames, sampled = sorted(options.frames), sorted(options.sampled_frames())
    limit = journal.answer({"task": "memory limit", "given_gib": options.memory_limit_gib},
                           lambda _: {"bytes": options.limit_bytes()})["bytes"]  # fmt: skip
    settings = {
        "network": options.network().as_json(), "device": options.device, "batch": 1, "repeats": options.repeats,
        "layers": [layer.name for layer in layers], "frames": frames, "sampling_frames": sampled,
        "memory_limit_bytes": limit,
        "search_limit_bytes": None if options.search_limit_gib is None else int(options.search_limit_gib * GIB),
        "search_resolution": options.search_resolution, "paper_network": Network.paper().as_json(),
        "widths": sorted(options.widths), "width_frames": sorted(options.width_frames),
        "memories_bytes": list(MEMORIES_BYTES),
    }  # fmt: skip
    sections: dict[str, list] = {name: [] for name in ("training", "sampling", "modes", "limits", *COUNTED)}
    result = {"schema": 1, "kind": "memory", "environment": environment_of(options.threads, journal, options.device)}
    result |= {"settings": settings} | sections
    parts = _Parts(settings, layers, options.threads, journal)
    work: list[tuple[str, float, Callable[[], None]]] = []
    for count in sorted({*frames, *sampled}):  # short ones first: a first impression comes early
        for layer in layers:
            for task, lengths, weight in (("training", frames, 3), ("sampling", sampled, 1)):
                if count in lengths:
                    step = partial(parts.steps, sections[task], task, layer, count)
                    work.append((f"{task}, {layer.label}, {count} frames", weight * cost(count), step))
    for layer in layers:
        work.append((f"{layer.label}, lean against fast", cost(128), partial(parts.modes, sections["modes"], layer)))
    if options.search_limit_gib is not None:
        for layer in layers:
            step = partial(parts.limit, sections["limits"], layer, sections["training"])
            work.append((f"most frames of {layer.label}", 3 * cost(256), step))
    if not options.skip_paper:
        work.append(("counting at the paper's setting", cost(64) * len(layers), partial(parts.counts, sections)))
    total, done = sum(weight for _, weight, _ in work), 0.0
    for description, weight, step in work:
        advance(description, done, total)
        step()
        done += weight
    advance("writing", total, total)
    return result


def cost(frames: int) -> float:
    """Expected work in arbitrary units: a constant for starting a process, the rest linear. For the time left only."""
    return 32.0 + frames


@dataclass(frozen=True)
class _Parts:
    """The parts of the benchmark; each appends its rows to a list."""

    settings: dict
    layers: tuple[Layer, ...]
    threads: int
    journal: Journal

    def request(self, task: str, layer: Layer, frames: int, **more) -> dict:
        base = {"task": task, "layer": layer.name, "frames": frames, "threads": self.threads}
        base |= {name: self.settings[name] for name in ("network", "device", "memory_limit_bytes")}
        return base | {"repeats": self.settings["repeats"], "seconds": SECONDS_PER_CONFIGURATION} | more

    def steps(self, rows: list[dict], task: str, layer: Layer, frames: int) -> None:
        answer = self.journal.answer(self.request(task, layer, frames), call_child)
        rows.append({"layer": layer.name, "frames": frames} | answer)

    def modes(self, rows: list[dict], layer: Layer) -> None:
        frames = min(self.settings["frames"], key=lambda count: abs(count - COMPARED_FRAMES))
        request = self.request("modes", layer, frames, seconds=SECONDS_PER_CONFIGURATION / 2)
        rows.append({"layer": layer.name, "frames": frames} | self.journal.answer(request, call_child))

    def within(self, limit: int, layer: Layer, frames: int) -> dict:
        """The answer of a training step with so many bytes. Some libraries crash where an allocation fails: what ends
        in an error and runs with all the memory that there is has run out of it."""
        request = self.request("training", layer, frames, repeats=0)
        answer = self.journal.answer(request | {"memory_limit_bytes": limit}, call_child)
        if answer["status"] == "error" and self.journal.answer(request, call_child)["status"] == "ok":
            return {"status": "out of memory", "detail": f"{answer['detail']}; runs with more memory"}
        return answer

    def limit(self, rows: list[dict], layer: Layer, training: list[dict]) -> None:
        """The largest number of frames that trains within the limit of the search, by training steps."""
        limit, resolution = self.settings["search_limit_bytes"], self.settings["search_resolution"]
        row = {"layer": layer.name, "limit_bytes": limit, "resolution": resolution, "probes": []}
        rows.append(row)
        if self.settings["device"] == "cpu" and resident_bytes() is None:
            row |= {"status": "not applicable", "detail": "this system does not limit the memory of a process"}
            return

        def fits(frames: int) -> bool:
            answer = self.within(limit, layer, frames)
            row["probes"].append({"frames": frames, "status": answer["status"], "detail": answer["detail"]})
            if answer["status"] not in ("ok", "out of memory"):
                raise _UndecidedError(answer["status"], f"{frames} frames: {answer['detail']}")
            if answer["status"] == "ok":
                row["gate"] = answer["gate"]
            return answer["status"] == "ok"

        own = [x for x in training if x["layer"] == layer.name and x["status"] == "ok"]
        points = [(x["frames"], median(x["peak_bytes"])) for x in own]
        try:
            most, too_many = largest(fits, crossing(points, limit) if points else resolution, resolution)
        except _UndecidedError as undecided:
            status, detail = undecided.args
            row |= {"status": status, "detail": detail}
            return
        if most == 0:
            row |= {"status": "out of memory", "detail": f"{resolution} frames do not fit"}
        else:
            row |= {"status": "ok", "detail": "", "most_frames": most, "too_many_frames": too_many}

    def counts(self, sections: dict[str, list]) -> None:
        """Counting takes one thread and no clock: as many layers at a time as there are threads."""
        with ThreadPoolExecutor(self.threads) as pool:
            for layer, answer in zip(self.layers, pool.map(self._counted, self.layers), strict=True):
                common = {name: answer[name] for name in ("status", "detail", "gate") if name in answer}
                for section in COUNTED:
                    rows = answer.get(section) or self._places(section)  # also when the child fails as a whole
                    sections[section] += [{"layer": layer.name} | common | row for row in rows]

    def _counted(self, layer: Layer) -> dict:
        names = ("frames", "widths", "width_frames", "memories_bytes")
        request = {"task": "counts", "layer": layer.name, "network": self.settings["paper_network"], "threads": 1}
        return self.journal.answer(request | {name: self.settings[name] for name in names}, call_child)

    def _places(self, section: str) -> list[dict]:
        """What the rows of a section are about."""
        if section == "saved":
            return [{"frames": frames} for frames in self.settings["frames"]]
        if section == "predicted":
            return [{"memory_bytes": memory} for memory in self.settings["memories_bytes"]]
        places = [(width, frames) for frames in self.settings["width_frames"] for width in self.settings["widths"]]
        return [{"base_channels": width, "frames": frames} for width, frames in places]


class _UndecidedError(Exception):
    """(status, detail): a probe that neither fits nor runs out of memory."""
