"""Options of the scan benchmark, apart from it so that the command line can offer them without importing torch."""

import os
from dataclasses import dataclass, field

from benchmarks.kernels.shapes import SHAPES, shape_named
from benchmarks.options import RunOptions, check_distinct, check_positive
from ssmvdm.errors import InputError

RIVALS = ("eager", "reference", "pscan", "associative", "compiled", "s4d-fft", "s4d-scan", "sdpa-8x64", "sdpa-equal")
DTYPES = ("float32", "bfloat16", "float16")
LAYOUTS = ("video", "channels-last", "length-contiguous")
BASE_LAYOUT = "channels-last"  # of ours that is compared with
QUICK_SHAPES = ("paper-1", "paper-4", "base", "length-16", "length-256")


def our_name(dtype: str, layout: str = BASE_LAYOUT) -> str:
    """Of ours in results."""
    return f"ours {dtype} {layout}"


@dataclass(frozen=True)
class ScanOptions(RunOptions):
    """The bidirectional scan on the CPU against its rivals: forward, and forward with backward.

    Rivals and ours are timed in turns in one process, so that a ratio is of one moment; every tensor that is timed has
    passed a check against float64 first. Writes scan.json, .csv, .md, .html and pictures as .svg and .png.
    """

    shapes: tuple[str, ...] = tuple(SHAPES)
    """Shapes by name: paper-1 to paper-4, paper-64, mamba-284, diffusers-65536, base, length-8 to -1024, channels-64 to
    -1792, sequences-1k to -1M; or SEQUENCESxLENGTHxCHANNELS."""

    states: int = 16
    """States per channel."""

    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """Storage types of ours: float32, bfloat16, float16. The first is the one that rivals are compared with."""

    layouts: tuple[str, ...] = LAYOUTS
    """Memory layouts of ours: video, channels-last, length-contiguous."""

    rivals: tuple[str, ...] = RIVALS
    """What to compare with: eager, reference (ours, in PyTorch), pscan, associative, compiled, s4d-fft, s4d-scan (our
    own S4D), sdpa-8x64, sdpa-equal."""

    compiled_length: int = 8
    """Greatest length at which the rival "compiled" takes part: torch.compile unrolls the loop over time, and takes
    minutes for long ones."""

    threads: tuple[int, ...] = field(default_factory=lambda: tuple(dict.fromkeys((1, min(2, os.cpu_count() or 1)))))
    """Numbers of threads; rivals run with the last one."""

    rounds: int = 15
    """Rounds of interleaved timings; a slow rival takes part in as many as its budget allows, three at least."""

    budget_seconds: float = 0.4
    """Time that one candidate may take at one shape and mode. A rival too slow for it runs on fewer sequences."""

    @classmethod
    def quick(cls) -> "ScanOptions":
        """Part of `bench all`."""
        return cls(shapes=QUICK_SHAPES, rounds=7, budget_seconds=0.2)

    @classmethod
    def full(cls) -> "ScanOptions":
        """Part of `bench all --full`."""
        return cls()

    def check(self) -> None:
        """InputError on the first option that cannot be used."""
        for option, values, choices in (
            ("--dtypes", self.dtypes, DTYPES), ("--layouts", self.layouts, LAYOUTS), ("--rivals", self.rivals, RIVALS),
        ):  # fmt: skip
            for value in values:
                if value not in choices:
                    raise InputError(f"{option}: unknown {value!r}; expected some of {', '.join(choices)}")
        for option, values in (
            ("--threads", self.threads), ("--states", (self.states,)), ("--rounds", (self.rounds,)),
            ("--compiled-length", (self.compiled_length,)),
        ):  # fmt: skip
            if not values or min(values) < 1:
                got = " ".join(map(str, values)) or "none"
                raise InputError(f"{option}: expected whole numbers of at least 1, got {got}")
        for option, values in (("--dtypes", self.dtypes), ("--layouts", self.layouts), ("--shapes", self.shapes)):
            if not values:
                raise InputError(f"{option}: expected at least one, got none")
            check_distinct(option, values)
        for name in self.shapes:
            try:
                channels = shape_named(name, self.states).shape.channels
            except ValueError as error:
                raise InputError(f"--shapes: {error}") from error
            if channels % 8:
                raise InputError(f"--shapes: expected a multiple of 8 channels (heads of attention), got {name}")
        check_positive("--budget-seconds", self.budget_seconds)
