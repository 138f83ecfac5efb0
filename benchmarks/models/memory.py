"""Peak memory and step time of training, and bytes saved for backward, per temporal layer and number of frames.

Every training measurement runs in a fresh process and counts only if it passes the gate. What runs out of memory, dies
or takes too long is a result too; the others go on.
"""

import os
import time
import webbrowser
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from statistics import median

from benchmarks.measure.children import call_child
from benchmarks.measure.environment import busy_warning, device_name, device_slug
from benchmarks.measure.process_memory import available_bytes
from benchmarks.report.files import RESULTS, prepare_folder
from benchmarks.shapes import FRAMES, GIB, LAYER_NAMES, Network, all_layer_names, layer_named
from ssmvdm.errors import InputError

SECONDS_PER_CONFIGURATION = 8.0  # after which no further repeat begins
COMPARED_FRAMES = 32  # or what is nearest to it, for the comparison of memory modes
AVAILABLE_SHARE = 0.9  # of the free memory that a child may take unless told otherwise


@dataclass(frozen=True)
class MemoryOptions:
    """Memory and time of a training step against frames, for every temporal layer.

    Trains a small 3-D U-Net (Adam, l2) on clips of the embedded maze walk, one fresh process per layer and number of
    frames, compares the time of memory "lean" with that of "fast", and counts the bytes that the paper's full network
    saves for backward, which needs no memory. Writes memory.json, .csv, .html and the plot as .svg and .png, light and
    dark.
    """

    layers: tuple[str, ...] = LAYER_NAMES
    """Temporal layers to compare: attention-einsum, attention-sdpa, linear-attention, s4d, bi-s4d, s6, bi-s6; the last
    four, which have the mixer mamba, also with another one, as in bi-s6/gss (mlp, glu, glu-mlp, gss)."""

    frames: tuple[int, ...] = FRAMES
    """Clip lengths to measure."""

    size: int = 16
    """Height and width of the clips in pixels, a multiple of 8."""

    base_channels: int = 16
    """Width of the small U-Net, a multiple of 8. Attention has 8 times as many features, as in the paper."""

    repeats: int = 3
    """Timed training steps per configuration, after a warm-up; fewer where they take long."""

    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    """CPU threads, pinned for every measurement."""

    memory_limit_gib: float | None = None
    """Memory one training step may take before it counts as out of memory. Default: 90 % of what is free now."""

    skip_paper: bool = False
    """Leave out the count of saved bytes at the paper's full setting."""

    out: Path | None = None
    """Folder for the results. Default: benchmarks/results/<device>. Earlier results there are replaced."""

    open: bool = False
    """Show the report in the browser when done."""

    def check(self) -> None:
        """InputError on the first option that cannot be used."""
        if not self.layers:
            raise InputError(f"--layers: expected at least one of {', '.join(LAYER_NAMES)}, got none")
        if not self.frames:
            raise InputError("--frames: expected at least one number of frames, got none")
        for name in self.layers:
            try:
                layer_named(name)
            except ValueError as error:
                raise InputError(f"--layers: {str(error).replace('one of', 'some of')}") from error
        for option, values in (("--layers", self.layers), ("--frames", self.frames)):
            if len(set(values)) != len(values):
                raise InputError(f"{option}: the same value twice in {' '.join(map(str, values))}")
        counts = [("--frames", frames) for frames in self.frames]
        for option, value in [*counts, ("--repeats", self.repeats), ("--threads", self.threads)]:
            if value < 1:
                raise InputError(f"{option}: expected a whole number of at least 1, got {value}")
        if self.memory_limit_gib is not None and not 0.0 < self.memory_limit_gib < float("inf"):
            raise InputError(f"--memory-limit-gib: expected a positive number, got {self.memory_limit_gib}")
        try:
            self.network()
        except ValueError as error:
            raise InputError(str(error)) from error

    def network(self) -> Network:
        return Network.small(self.base_channels, self.size)

    def folder(self) -> Path:
        return self.out or RESULTS / device_slug(device_name())

    def limit_bytes(self) -> int | None:
        if self.memory_limit_gib is not None:
            return int(self.memory_limit_gib * GIB)
        free = available_bytes()
        return None if free is None else int(AVAILABLE_SHARE * free)


def run(options: MemoryOptions) -> Path:
    """Measure everything, write the results, print the table; returns the HTML report's path."""
    from benchmarks.models import report
    from benchmarks.report.terminal import memory_table, progress_bar, stdout_console

    options.check()
    folder = prepare_folder(options.folder())
    start = time.monotonic()
    with progress_bar() as advance:
        result = measure(options, advance)
    result["wall_seconds"] = time.monotonic() - start
    html = report.write_all(result, folder)
    console = stdout_console()
    for table in memory_table(result):
        console.print(table)
    if warning := busy_warning(result["environment"]):
        console.print(f"[red]{warning}[/]", soft_wrap=True)
    console.print(f"Report: {html}  ({result['wall_seconds']:.0f} s)", soft_wrap=True)
    if options.open:
        webbrowser.open(html.resolve().as_uri())
    return html


def measure(options: MemoryOptions, advance: Callable[[str, float, float], None]) -> dict:
    """All measurements as one JSON-able dictionary. advance(what comes, work done, work in all) reports progress."""
    network = options.network()
    layers = [layer_named(name) for name in all_layer_names() if name in options.layers]
    frames = sorted(options.frames)
    work = [(layer, count) for count in frames for layer in layers]  # short ones first: a first impression comes early
    compared = nearest(frames, COMPARED_FRAMES)
    total = sum(cost(count) for _, count in work) + cost(2 * compared) * len(layers)
    total += 0.0 if options.skip_paper else cost(16) * len(layers)
    done = 0.0
    advance("environment", done, total)
    result = {
        "schema": 1,
        "kind": "memory",
        "environment": call_child({"task": "environment", "threads": options.threads}),
        "settings": {
            "network": network.as_json(), "batch": 1, "repeats": options.repeats, "layers": [x.name for x in layers],
            "frames": frames, "memory_limit_bytes": options.limit_bytes(), "paper_network": Network.paper().as_json(),
        },
        "training": [],
        "modes": [],
        "saved": [],
    }  # fmt: skip
    if result["environment"].get("status"):
        raise InputError(f"torch or the package cannot be imported: {result['environment']['detail']}")
    for layer, count in work:
        advance(f"{layer.label}, {count} frames", done, total)
        request = {
            "task": "training", "layer": layer.name, "frames": count, "network": network.as_json(),
            "threads": options.threads, "repeats": options.repeats, "seconds": SECONDS_PER_CONFIGURATION,
            "memory_limit_bytes": options.limit_bytes(),
        }  # fmt: skip
        result["training"].append({"layer": layer.name, "frames": count} | call_child(request))
        done += cost(count)
    for layer in layers:
        advance(f"{layer.label}, lean against fast", done, total)
        request = {
            "task": "modes", "layer": layer.name, "frames": compared, "network": network.as_json(),
            "threads": options.threads, "repeats": options.repeats, "seconds": SECONDS_PER_CONFIGURATION / 2,
        }  # fmt: skip
        result["modes"].append({"layer": layer.name, "frames": compared} | call_child(request))
        done += cost(2 * compared)
    # Counting takes one thread and no clock: as many layers at a time as there are threads.
    with ThreadPoolExecutor(options.threads) as pool:
        counted = [] if options.skip_paper else layers
        for layer, rows in zip(counted, pool.map(lambda x: saved_rows(x.name, frames), counted), strict=True):
            result["saved"].extend(rows)
            done += cost(16)
            advance(f"paper's setting, {layer.label} counted", done, total)
    advance("writing", total, total)
    return result


def nearest(values: list[int], wanted: int) -> int:
    return min(values, key=lambda value: abs(value - wanted))


def cost(frames: int) -> float:
    """Expected work in arbitrary units: a constant for starting a process, the rest linear. For the time left only."""
    return 32.0 + frames


def saved_rows(name: str, frames: list[int]) -> list[dict]:
    """One row per number of frames, also when the child fails as a whole."""
    network = Network.paper().as_json()
    answer = call_child({"task": "saved", "layer": name, "frames": frames, "network": network, "threads": 1})
    rows = answer.get("rows") or [{"frames": count} | answer for count in frames]
    return [{"layer": layer_named(name).name} | row for row in rows]


def spread(values: list[float]) -> tuple[float, float, float]:
    """(median, least, largest)."""
    return median(values), min(values), max(values)
