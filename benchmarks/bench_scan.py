"""The bidirectional scan on a GPU against its rivals: `make bench-gpu` or `python -m benchmarks.bench_scan`.

Forward and backward by themselves, in three memory layouts, after the correctness gate of the very buffers that are
timed. A launch is a replay of a CUDA graph with cold caches; candidates take turns; a time stands beside the share of
the modelled floor that it reaches, at the clock that was read meanwhile. Every shape is written to the results when it
is done, so that a run that is stopped leaves what it has measured.

--device cpu goes the same way with the CPU kernels, the host's clock and no floors: what can be tried without a GPU.
"""

import argparse
import gc
import traceback
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch

from benchmarks.kernels import gpu_rivals, mamba_ssm_sdist, rivals, scan_case
from benchmarks.kernels.gpu_floors import floors
from benchmarks.kernels.gpu_tables import markdown, save_figures
from benchmarks.kernels.scan_case import Shape
from benchmarks.kernels.scan_options import DTYPES, LAYOUTS
from benchmarks.measure import gpu_device, gpu_timing
from benchmarks.options import check_positive, device_folder
from benchmarks.report.files import all_or_none, in_json, prepare_folder
from ssmvdm.errors import InputError

MODES = ("forward", "backward")
BACKENDS = {"cuda": ("cuda", "triton"), "cpu": ("cpu",)}
RIVAL_NAMES = ("mamba-ssm", "mamba-ssm-folded", "sdpa-8x64", "sdpa-equal", "compiled")
MEMORY_SHARE = 0.6  # of the free memory for one rival
STEM = "scan-gpu"


@dataclass(frozen=True)
class Options:
    """budget_s: of one candidate in one mode at one shape. compiled_lengths: where torch.compile takes part; it unrolls
    the loop over time, and compiles for minutes at greater lengths. mamba: a folder of `mamba_ssm_sdist`."""

    device: str = "cuda"
    sequences: int = 4096
    channels: int = 224
    states: int = 16
    lengths: tuple[int, ...] = (16, 64, 256)
    dtype: str = "bfloat16"
    layouts: tuple[str, ...] = ("channels-last", "video", "length-contiguous")
    rivals: tuple[str, ...] = RIVAL_NAMES
    compiled_lengths: tuple[int, ...] = (16,)
    launches: int = 200
    budget_s: float = 4.0
    mamba: Path | None = None
    out: Path | None = None

    def check(self) -> None:
        """InputError on the first option that cannot be used."""
        for option, values, choices in (
            ("--device", (self.device,), tuple(BACKENDS)), ("--dtype", (self.dtype,), DTYPES),
            ("--layouts", self.layouts, LAYOUTS), ("--rivals", self.rivals, RIVAL_NAMES),
        ):  # fmt: skip
            for value in values:
                if value not in choices:
                    raise InputError(f"{option}: unknown {value!r}; expected some of {', '.join(choices)}")
        for option, values in (
            ("--sequences", (self.sequences,)), ("--channels", (self.channels,)), ("--states", (self.states,)),
            ("--lengths", self.lengths), ("--launches", (self.launches,)),
        ):  # fmt: skip
            if not values or min(values) < 1:
                raise InputError(f"{option}: expected whole numbers of at least 1, got {values}")
        if not self.layouts:
            raise InputError("--layouts: expected at least one")
        check_positive("--budget-s", self.budget_s)
        if self.device == "cuda" and not torch.cuda.is_available():
            raise InputError("--device cuda: PyTorch finds no CUDA device")


def measure(options: Options, save: Callable[[dict], None]) -> dict:
    """All measurements as one JSON-able dictionary; save(result) after every shape."""
    options.check()
    result: dict = {
        "schema": 1, "kind": STEM, "environment": gpu_device.describe(options.device),
        "settings": {"sequences": options.sequences, "channels": options.channels, "states": options.states,
                     "dtype": options.dtype, "lengths": list(options.lengths), "base": None, "caches": None},
        "notes": [], "clocks": [], "rows": [],
    }  # fmt: skip
    compared = _rivals(options, result["notes"])
    backends = _backends(options, result["notes"])
    result["settings"]["base"] = f"{backends[0]} {options.layouts[0]}" if backends else None
    with gpu_timing.timer_of(options.device) as timer:
        result["settings"]["caches"] = timer.caches
        # What compiles for long comes last, so that a run that is stopped has the rest.
        for length in sorted(options.lengths, key=lambda length: length in options.compiled_lengths):
            shape = Shape(options.sequences, options.channels, length, options.states)
            _measure_shape(options, shape, backends, compared, timer, result)
            save(result)
    return result


def _backends(options: Options, notes: list[str]) -> list[str]:
    """Those of ours that run here; why the others do not goes to the notes."""
    from ssmvdm_kernels import backends

    reasons = {name: backends.missing(name) for name in BACKENDS[options.device]}
    notes += [f"{name} is not measured. {reason}" for name, reason in reasons.items() if reason]
    return [name for name, reason in reasons.items() if reason is None]


def _rivals(options: Options, notes: list[str]) -> list[rivals.Rival]:
    """Those that were asked for and are there; why mamba-ssm's are not, or which they are, goes to the notes."""
    scan = None
    if options.device == "cuda" and any(name.startswith("mamba") for name in options.rivals):
        try:
            if options.mamba is None:
                raise InputError("no folder of its compiled kernels was named (--mamba)")
            scan = mamba_ssm_sdist.scan_of(mamba_ssm_sdist.load(options.mamba))
            notes.append(f"mamba-ssm is version {mamba_ssm_sdist.compiled_version(options.mamba)}, compiled here.")
        except InputError as error:
            notes.append(f"mamba-ssm is not measured: {error}.")
    return [rival for rival in gpu_rivals.all_rivals(scan) if rival.name in options.rivals]


def _measure_shape(options: Options, shape: Shape, backends: list[str], compared, timer, result: dict) -> None:
    """One candidate after the other, each in turns with the first of ours, which alone stays in memory."""
    candidates = [
        (f"{backend} {layout}", f"ours, {backend}, {layout}", True,
         partial(_prepare_ours, options, shape, backend, layout))
        for backend in backends for layout in options.layouts
    ]  # fmt: skip
    candidates += [
        (rival.name, rival.label, False, partial(_prepare_rival, options, shape, rival))
        for rival in compared if rival.name != "compiled" or shape.length in options.compiled_lengths
    ]  # fmt: skip
    base: dict[str, Callable] = {}
    for name, label, is_ours, prepare in candidates:
        row = {"length": shape.length, "name": name, "label": label, "is_ours": is_ours}
        found, calls = _prepared(prepare, timer)
        result["rows"] += _timed(options, shape, row | found, calls, base, timer)
        base = base or calls
        del calls
        _release(options.device)
    clocks = timer.take_clocks()
    if clocks:
        result["clocks"].append({"length": shape.length} | clocks)
        _add_shares(shape, result, clocks["sm_mhz_median"], getattr(torch, options.dtype).itemsize)


def _prepared(prepare: Callable, timer) -> tuple[dict, dict[str, Callable]]:
    """(part of a row, what is launched by mode), the latter empty unless the gate has passed."""
    try:
        row, functions = prepare()
        if row["status"] != "ok":
            return row, {}
        return row, {mode: timer.prepare(function) for mode, function in functions.items()}
    except Exception as error:  # one that breaks or runs out of memory leaves the others to be measured
        traceback.print_exc()
        message = (str(error).splitlines() or ["no message"])[0]
        return {"status": "error", "detail": f"{type(error).__name__}: {message}"}, {}


def _prepare_ours(options: Options, shape: Shape, backend: str, layout: str) -> tuple[dict, dict[str, Callable]]:
    tensors = scan_case.our_tensors(shape, getattr(torch, options.dtype), layout, options.device)
    run = partial(scan_case.run_ours, backend=backend)
    return scan_case.gate_ours(tensors, layout, run).as_row(), functions_of(run, tensors)


def _prepare_rival(options: Options, shape: Shape, rival: rivals.Rival) -> tuple[dict, dict[str, Callable]]:
    """On fewer sequences where memory asks for it; times are scaled up, which favours the rival."""
    count = shape.sequences
    if options.device == "cuda":
        free, _ = torch.cuda.mem_get_info()
        each = rival.bytes_per_element * shape.channels * shape.length
        while count * each > MEMORY_SHARE * free and count % 2 == 0:
            count //= 2
    dtype = getattr(torch, options.dtype)
    tensors = rivals.leaves(rival, replace(shape, sequences=count), dtype, options.device)
    row = {"timed_sequences": count} | scan_case.gate_rival(rival, tensors).as_row()
    return row, functions_of(rival.run, tensors)


def functions_of(run: Callable, tensors: dict) -> dict[str, Callable[[], object]]:
    """What is timed: forward without a graph for autograd, and backward of one forward again and again."""
    y = run(tensors)
    dy = scan_case.like_output(y)
    leaves = list(tensors.values())

    def forward():
        with torch.no_grad():
            return run(tensors)

    return {"forward": forward, "backward": lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)}


def _timed(options: Options, shape: Shape, row: dict, calls: dict, base: dict, timer) -> list[dict]:
    """A record per mode, with times if there is something to launch."""
    records = []
    scale = shape.sequences / row.get("timed_sequences", shape.sequences)
    for mode in MODES:
        record = row | {"mode": mode}
        if calls:
            turns = {"base": base[mode], "own": calls[mode]} if base else {"own": calls[mode]}
            samples = gpu_timing.in_turns(timer, turns, options.launches, options.budget_s)
            found = gpu_timing.summary(samples["own"])
            record |= {key: value if key == "launches" else value * scale for key, value in found.items()}
            record["ratio"] = gpu_timing.ratio(samples["own"], samples["base"]) * scale if base else 1.0
        records.append(record)
    return records


def _add_shares(shape: Shape, result: dict, sm_mhz: float, itemsize: int) -> None:
    """Of our rows of this shape: the floors and the share of the greater one."""
    for row in result["rows"]:
        if row["length"] == shape.length and row["is_ours"] and "seconds" in row:
            row["floors"] = floors(shape, row["mode"], itemsize, result["environment"], sm_mhz)
            row["share_of_floor"] = max(row["floors"].values()) / row["seconds"]


def _release(device: str) -> None:
    gc.collect()
    if device == "cuda":
        torch.cuda.empty_cache()


def write(result: dict, folder: Path) -> None:
    """JSON, tables and figures."""
    with all_or_none(folder) as draft:
        (draft / f"{STEM}.json").write_text(in_json(result), encoding="utf-8")
        (draft / f"{STEM}.md").write_text(markdown(result), encoding="utf-8")
        save_figures(result, draft, STEM)


def run(options: Options) -> int:
    """Measure and write; 0 if everything of ours passed its gate and was measured, and there was something of ours."""
    options.check()
    folder = prepare_folder(options.out or device_folder(options.device))
    result = measure(options, lambda result: write(result, folder))
    print(markdown(result))
    ours = [row["status"] for row in result["rows"] if row["is_ours"]]
    return 0 if ours and set(ours) == {"ok"} else 1


def parse(arguments: list[str] | None) -> Options:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.bench_scan", description=__doc__.splitlines()[0])
    default = Options()
    for name, value in vars(default).items():
        option = "--" + name.replace("_", "-")
        if isinstance(value, tuple):
            parser.add_argument(option, nargs="*", type=type(value[0]), default=value)
        else:
            parser.add_argument(option, type=Path if value is None else type(value), default=value)
    found = vars(parser.parse_args(arguments))
    return Options(**{name: tuple(value) if isinstance(value, list) else value for name, value in found.items()})


def main(arguments: list[str] | None = None) -> int:
    try:
        return run(parse(arguments))
    except InputError as error:
        print(f"bench_scan: {error}")
        return 2


if __name__ == "__main__":
    raise SystemExit(main())
