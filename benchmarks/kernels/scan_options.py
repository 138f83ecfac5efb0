"""Options of the scan benchmark, apart from it so that the command line can offer them without importing torch."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.kernels.shapes import SHAPES, shape_named
from benchmarks.options import DEVICES, RunOptions, check_device, check_distinct, check_positive
from ssmvdm.errors import InputError

RIVALS = {  # and the devices that they are compared on
    "mamba-ssm": ("cuda",), "mamba-ssm-folded": ("cuda",), "eager": ("cpu",), "pscan": ("cpu",), "reference": ("cpu",),
    "associative": ("cpu",), "s4d-fft": ("cpu",), "s4d-scan": ("cpu",), "sdpa-8x64": DEVICES,
    "sdpa-equal": DEVICES, "compiled": DEVICES,
}  # fmt: skip
BACKENDS = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # of ours; the first is the one that is compared with
DTYPES = ("float32", "bfloat16", "float16")
LAYOUTS = ("video", "channels-last", "length-contiguous")
BASE_LAYOUT = "channels-last"  # of ours that is compared with
TUNED_SHAPES = ("4096x16x224", "4096x64x224", "4096x256x224")  # what the GPU kernels are tuned for
NOT_BEGUN = {"status": "timeout", "detail": "not begun within the time limit"}  # what such a row says
QUICK_RIVALS = ("eager", "pscan", "s4d-fft", "s4d-scan", "sdpa-8x64", "sdpa-equal")
QUICK_SHAPES = ("paper-1", "paper-4", "base", "length-16", "length-256")


def our_name(backend: str, dtype: str, layout: str = BASE_LAYOUT) -> str:
    """Of ours in results."""
    return f"ours {dtype} {layout}" if backend == "cpu" else f"ours {backend} {dtype} {layout}"


def our_row(backend: str, dtype: str, layout: str) -> dict:
    """What all rows of one of ours say."""
    label = ", ".join(["ours", *([backend] if backend != "cpu" else []), layout, dtype])
    return {"name": our_name(backend, dtype, layout), "label": label, "is_ours": True, "dtype": dtype}


@dataclass(frozen=True)
class ScanOptions(RunOptions):
    """The bidirectional scan against its rivals: forward, and forward with backward.

    Rivals and ours are timed in turns in one process, so that a ratio is of one moment; the calls that are timed have
    passed a check of a few of their sequences against float64 first. On a GPU a launch is the replay of a graph with
    cold caches. Writes scan.json, .csv, .md, .html and pictures as .svg and .png.
    """

    shapes: tuple[str, ...] = tuple(SHAPES)
    """Shapes by name: paper-1 to paper-4, paper-64, mamba-284, diffusers-65536, base, length-8 to -1024, channels-64 to
    -1792, sequences-1k to -1M; or SEQUENCESxLENGTHxCHANNELS."""

    states: int = 16
    """States per channel."""

    dtypes: tuple[str, ...] | None = None
    """Storage types of ours: float32, bfloat16, float16. The first is the one that rivals are compared with. Default:
    float32 and bfloat16, on a GPU the other way round."""

    layouts: tuple[str, ...] = LAYOUTS
    """Memory layouts of ours: video, channels-last, length-contiguous."""

    rivals: tuple[str, ...] | None = None
    """What to compare with. On a CPU: eager, pscan, reference (ours, in PyTorch), associative, s4d-fft, s4d-scan (our
    own S4D); on a GPU: mamba-ssm, mamba-ssm-folded (sequences end to end); on both: sdpa-8x64, sdpa-equal, compiled.
    Default: all of the device."""

    mamba: Path | None = None
    """Folder of mamba-ssm's compiled kernels: python -m benchmarks.kernels.mamba_ssm_sdist ARCHIVE FOLDER."""

    compiled_length: int = 8
    """Greatest length at which the rival "compiled" takes part: torch.compile unrolls the loop over time, and takes
    minutes for long ones."""

    threads: tuple[int, ...] = field(default_factory=lambda: tuple(dict.fromkeys((1, min(2, os.cpu_count() or 1)))))
    """Numbers of threads; rivals run with the last one."""

    launches: int | None = None
    """Timed calls of a candidate at one shape and mode: on a CPU its turns, in each of which a short call is repeated;
    a slow one has as many as its budget allows, three at least. Default: 15 on a CPU, 200 on a GPU."""

    budget_seconds: float = 0.4
    """Time that these calls may take together. On a CPU a rival too slow for it runs on fewer sequences."""

    keep_freed_memory: bool = True
    """On a CPU: what a call frees stays with the process, in large pages, so that every call finds its memory warm.
    Without, torch's allocator is as users have it: large blocks go back to the system, and whoever takes many pays for
    the clearing of new pages."""

    time_limit: float = float("inf")
    """Seconds for the whole run; what has not begun by then is a row that says so."""

    @classmethod
    def quick(cls, device: str = "cpu") -> "ScanOptions":
        """Part of `bench all`."""
        if device == "cpu":
            return cls(shapes=QUICK_SHAPES, rivals=QUICK_RIVALS, launches=7, budget_seconds=0.15)
        return cls(device=device, shapes=TUNED_SHAPES, compiled_length=16)

    @classmethod
    def full(cls, device: str = "cpu") -> "ScanOptions":
        """Part of `bench all --full`."""
        if device == "cpu":
            return cls(budget_seconds=0.2)
        return cls(device=device, budget_seconds=4.0, compiled_length=16)

    def check(self) -> None:
        """InputError on the first option that cannot be used."""
        check_device(self.device)
        for option, values, choices in (
            ("--dtypes", self.storage_types(), DTYPES), ("--layouts", self.layouts, LAYOUTS),
            ("--rivals", self.compared(), self._rivals_of_device()),
        ):  # fmt: skip
            for value in values:
                if value not in choices:
                    raise InputError(f"{option}: unknown {value!r}; expected some of {', '.join(choices)}")
        for option, values in (
            ("--threads", self.threads), ("--states", (self.states,)), ("--launches", (self.timed_launches(),)),
            ("--compiled-length", (self.compiled_length,)),
        ):  # fmt: skip
            if not values or min(values) < 1:
                got = " ".join(map(str, values)) or "none"
                raise InputError(f"{option}: expected whole numbers of at least 1, got {got}")
        for option, values in (
            ("--dtypes", self.storage_types()), ("--layouts", self.layouts), ("--shapes", self.shapes),
        ):  # fmt: skip
            if not values:
                raise InputError(f"{option}: expected at least one, got none")
            check_distinct(option, values)
        check_distinct("--rivals", self.compared())
        check_distinct("--threads", self.threads)
        for name in self.shapes:
            try:
                shape_named(name, self.states)
            except ValueError as error:
                raise InputError(f"--shapes: {error}") from error
        check_positive("--budget-seconds", self.budget_seconds)
        if not self.time_limit > 0:
            raise InputError(f"--time-limit: expected a positive number, got {self.time_limit}")

    def storage_types(self) -> tuple[str, ...]:
        if self.dtypes is not None:
            return self.dtypes
        return ("float32", "bfloat16") if self.device == "cpu" else ("bfloat16", "float32")

    def compared(self) -> tuple[str, ...]:
        """Names of the rivals, in the order of RIVALS."""
        return self._rivals_of_device() if self.rivals is None else self.rivals

    def _rivals_of_device(self) -> tuple[str, ...]:
        return tuple(name for name, devices in RIVALS.items() if self.device in devices)

    def timed_launches(self) -> int:
        if self.launches is not None:
            return self.launches
        return 15 if self.device == "cpu" else 200
