"""Options of the scan benchmark, apart from it so that the command line can offer them without importing torch."""

import os
from dataclasses import dataclass, field
from pathlib import Path

from benchmarks.measure.environment import device_name, device_slug
from benchmarks.report.files import RESULTS
from ssmvdm.errors import InputError

RIVALS = ("eager", "pscan", "s4d-fft", "s4d-scan", "sdpa-8x64", "sdpa-equal")
DTYPES = ("float32", "bfloat16", "float16")
LAYOUTS = ("video", "channels-last", "length-contiguous")


@dataclass(frozen=True)
class ScanOptions:
    """The bidirectional scan on the CPU against its rivals: forward, and forward with backward.

    Rivals and ours are timed in turns in one process, so that a ratio is of one moment; every tensor that is timed has
    passed a check against float64 first. Writes scan.json and scan.md.
    """

    sequences: tuple[int, ...] = (256, 1024)
    """Numbers of independent sequences."""

    lengths: tuple[int, ...] = (16, 64, 256)
    """Lengths of the sequences."""

    channels: int = 128
    """Channels per sequence, a multiple of 8."""

    states: int = 16
    """States per channel."""

    dtypes: tuple[str, ...] = ("float32", "bfloat16")
    """Storage types of ours: float32, bfloat16, float16. The first is the one that rivals are compared with."""

    layouts: tuple[str, ...] = LAYOUTS
    """Memory layouts of ours: video, channels-last, length-contiguous."""

    rivals: tuple[str, ...] = RIVALS
    """What to compare with: eager, pscan, s4d-fft, s4d-scan (our own S4D), sdpa-8x64, sdpa-equal."""

    threads: tuple[int, ...] = field(default_factory=lambda: tuple(dict.fromkeys((1, min(2, os.cpu_count() or 1)))))
    """Numbers of threads; rivals run with the last one."""

    rounds: int = 15
    """Rounds of interleaved timings; a slow rival takes part in as many as its budget allows, three at least."""

    budget_seconds: float = 4.0
    """Time that one candidate may take at one shape and mode. A rival too slow for it runs on fewer sequences."""

    out: Path | None = None
    """Folder for the results. Default: benchmarks/results/<device>."""

    def check(self) -> None:
        """InputError on the first option that cannot be used."""
        for option, values, choices in (
            ("--dtypes", self.dtypes, DTYPES), ("--layouts", self.layouts, LAYOUTS), ("--rivals", self.rivals, RIVALS),
        ):  # fmt: skip
            for value in values:
                if value not in choices:
                    raise InputError(f"{option}: unknown {value!r}; expected some of {', '.join(choices)}")
        for option, values in (
            ("--sequences", self.sequences), ("--lengths", self.lengths), ("--threads", self.threads),
            ("--channels", (self.channels,)), ("--states", (self.states,)), ("--rounds", (self.rounds,)),
        ):  # fmt: skip
            if not values or min(values) < 1:
                got = " ".join(map(str, values)) or "none"
                raise InputError(f"{option}: expected whole numbers of at least 1, got {got}")
        if not self.dtypes or not self.layouts:
            raise InputError("--dtypes and --layouts: expected at least one of each")
        if self.channels % 8:
            raise InputError(f"--channels: expected a multiple of 8 (heads of attention), got {self.channels}")
        if not 0.0 < self.budget_seconds < float("inf"):
            raise InputError(f"--budget-seconds: expected a positive number, got {self.budget_seconds}")

    def folder(self) -> Path:
        return self.out or RESULTS / device_slug(device_name())
