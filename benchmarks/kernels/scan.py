"""The bidirectional scan on the CPU against its rivals: `ssmvdm bench scan` or `python -m benchmarks.kernels.scan`.

Everything that is compared is timed in turns in one process (see `timing`) after it has passed its gate on the timed
buffers. A rival that is too slow or too large for a shape runs on fewer sequences and is scaled up, which the results
say: sequences are independent, and fewer of them only favour it.
"""

import json
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch

from benchmarks.kernels import rivals
from benchmarks.kernels.scan_case import (
    Shape,
    gate_ours,
    gate_rival,
    gate_row,
    gradients,
    like_output,
    our_tensors,
    run_ours,
)
from benchmarks.kernels.scan_options import ScanOptions
from benchmarks.kernels.scan_tables import markdown
from benchmarks.measure import environment, process_memory, timing
from benchmarks.measure.children import call_child
from benchmarks.report.files import prepare_folder
from benchmarks.report.terminal import progress_bar

BASE_LAYOUT = "channels-last"
S4D_FORMS = ("s4d-fft", "s4d-scan")
MODES = ("forward", "forward+backward")
RIVAL_MEMORY_BYTES = 6 * 2**30
PROBE_SEQUENCES = 8
BACKWARD_FLOOR = 7.5 / 3.5  # operations of a backward step over those of a forward step, per element and state


def run(options: ScanOptions) -> Path:
    """Measure, write scan.json and scan.md, print the tables; returns the path of the tables."""
    options.check()
    folder = prepare_folder(options.folder())
    with progress_bar() as advance:
        result = measure(options, advance)
    text = markdown(result)
    with tempfile.TemporaryDirectory(dir=folder, prefix=".writing-") as name:
        for file, content in (("scan.md", text), ("scan.json", json.dumps(result, indent=1) + "\n")):
            (Path(name) / file).write_text(content, encoding="utf-8")
            (Path(name) / file).replace(folder / file)
    print(text)
    return folder / "scan.md"


def measure(options: ScanOptions, advance: Callable[[str, float, float], None]) -> dict:
    """All measurements as one JSON-able dictionary."""
    sizes = [(sequences, length) for sequences in options.sequences for length in options.lengths]
    shapes = [Shape(sequences, options.channels, length, options.states) for sequences, length in sizes]
    threads = options.threads[-1]
    is_warm = process_memory.keep_freed_memory()
    torch.set_num_threads(threads)
    result = {
        "schema": 1, "kind": "scan", "environment": environment.describe(threads),
        "settings": {"channels": options.channels, "states": options.states, "dtypes": list(options.dtypes),
                     "layouts": list(options.layouts), "threads": list(options.threads), "base_layout": BASE_LAYOUT,
                     "keeps_freed_memory": is_warm},
        "exponentials_per_second": timing.exponentials_per_second(threads),
        "ours": [], "rivals": [], "scaling": [], "memory": [],
    }  # fmt: skip
    total = float(len(shapes) + len(options.lengths))
    for index, shape in enumerate(shapes):
        advance(f"{shape.sequences} sequences of {shape.length}", float(index), total)
        torch.set_num_threads(threads)
        measure_shape(options, shape, result)
        if len(options.threads) > 1:
            result["scaling"].extend(measure_scaling(options, shape))
    for index, length in enumerate(options.lengths):
        advance(f"peak memory, length {length}", float(len(shapes) + index), total)
        shape = Shape(options.sequences[-1], options.channels, length, options.states)
        for candidate in ("ours", *(name for name in S4D_FORMS if name in options.rivals)):
            request = {"task": "scan_peak", "threads": threads, "shape": vars(shape), "dtype": options.dtypes[0]}
            answer = call_child(request | {"candidate": candidate})
            result["memory"].append({"sequences": shape.sequences, "length": length, "candidate": candidate} | answer)
    advance("done", total, total)
    return result


def calls(run: Callable, tensors: dict) -> dict[str, Callable[[], object]]:
    """What is timed, by mode."""
    with torch.no_grad():
        dy = like_output(run(tensors))

    def forward():
        with torch.no_grad():
            return run(tensors)

    return {"forward": forward, "forward+backward": lambda: gradients(run, tensors, dy)}


def measure_shape(options: ScanOptions, shape: Shape, result: dict) -> None:
    """Our variants and the rivals at one shape; rows are appended to `result`."""
    base = (options.dtypes[0], BASE_LAYOUT)
    variants = [base]
    variants += [(options.dtypes[0], layout) for layout in options.layouts if layout != BASE_LAYOUT]
    variants += [(dtype, BASE_LAYOUT) for dtype in options.dtypes[1:]]
    ours: dict[str, tuple[dict, dict]] = {}  # name -> (row, calls by mode)
    for dtype, layout in variants:
        tensors = our_tensors(shape, getattr(torch, dtype), layout)
        row = {"dtype": dtype, "layout": layout} | gate_row(gate_ours(tensors, layout))
        ours[our_name(dtype, layout)] = (row, calls(run_ours, tensors))
    for mode in MODES:
        entries = {name: (row, by_mode[mode]) for name, (row, by_mode) in ours.items()}
        for rival in rivals.RIVALS:
            if rival.name in options.rivals:
                entries[rival.name] = prepare_rival(rival, shape, options, mode)
        functions = {name: call for name, (row, call) in entries.items() if row["status"] == "ok"}
        samples = timing.interleaved(functions, options.rounds, options.budget_seconds)
        for name, (row, _) in entries.items():
            record = {"sequences": shape.sequences, "length": shape.length, "mode": mode, "name": name} | row
            if name in samples:
                scale = shape.sequences / row.get("timed_sequences", shape.sequences)
                record["seconds"] = timing.middle(samples[name]) * scale
                record["rounds"] = sum(value is not None for value in samples[name])
                if our_name(*base) in samples:
                    record["ratio"] = timing.ratio(samples[name], samples[our_name(*base)]) * scale
            result["ours" if name in ours else "rivals"].append(record)
    add_share_of_floor(result, shape)


def our_name(dtype: str, layout: str) -> str:
    return f"ours {dtype} {layout}"


def prepare_rival(rival: rivals.Rival, shape: Shape, options: ScanOptions, mode: str) -> tuple[dict, Callable]:
    """A rival on as many sequences as time and memory allow, gated: (row, what is timed)."""
    probe = min(PROBE_SEQUENCES, shape.sequences)
    seconds = timing.once(calls(rival.run, rivals.leaves(rival, replace(shape, sequences=probe)))[mode])
    by_time = int(probe * options.budget_seconds / 4 / max(seconds, 1e-6))  # a warm-up and three rounds
    by_memory = RIVAL_MEMORY_BYTES // (rival.bytes_per_element * shape.channels * shape.length)
    count = min(shape.sequences, max(probe, min(by_time, by_memory)))
    tensors = rivals.leaves(rival, replace(shape, sequences=count))
    row = {"label": rival.label, "timed_sequences": count} | gate_row(gate_rival(rival, tensors))
    return row, calls(rival.run, tensors)[mode]


def add_share_of_floor(result: dict, shape: Shape) -> None:
    """Of our rows of this shape: the time that the exponentials alone would take, as a share of the time taken. The
    backward part is the difference of the two modes; its floor is that of its operations."""
    rate = result["exponentials_per_second"]
    rows = {(row["name"], row["mode"]): row for row in result["ours"]
            if (row["sequences"], row["length"]) == (shape.sequences, shape.length) and "seconds" in row}  # fmt: skip
    for name, mode in [key for key in rows if rate and key[1] == "forward"]:
        floor = shape.exponentials() / rate
        forward, both = rows[name, mode], rows[name, "forward+backward"]
        forward["share_of_floor"] = floor / forward["seconds"]
        both["share_of_floor_of_backward"] = floor * BACKWARD_FLOOR / max(both["seconds"] - forward["seconds"], 1e-9)


def measure_scaling(options: ScanOptions, shape: Shape) -> list[dict]:
    """Time on the first number of threads over that on the others, in turns."""
    tensors = our_tensors(shape, getattr(torch, options.dtypes[0]), BASE_LAYOUT)
    rows = []
    for mode, call in calls(run_ours, tensors).items():

        def pinned(threads: int, call=call):
            torch.set_num_threads(threads)
            return call()

        functions = {str(threads): (lambda threads=threads: pinned(threads)) for threads in options.threads}
        samples = timing.interleaved(functions, options.rounds, options.budget_seconds)
        alone = samples[str(options.threads[0])]
        speedup = {str(threads): timing.ratio(alone, samples[str(threads)]) for threads in options.threads}
        rows.append({"sequences": shape.sequences, "length": shape.length, "mode": mode, "speedup": speedup})
    return rows


if __name__ == "__main__":
    import sys

    from ssmvdm.cli import main

    sys.exit(main(["bench", "scan", *sys.argv[1:]]))
