"""Options of the layer benchmark, apart from it so that the command line can offer them without importing torch."""

import os
from dataclasses import dataclass, field

from benchmarks.layers.candidates import ALL, QUICK, WIDTHS, Shape, candidate_named
from benchmarks.options import RunOptions, check_device, check_distinct, check_positive
from ssmvdm.errors import InputError

STRIDE = 2 ** (len(WIDTHS) - 1)  # of the U-Net, in pixels


@dataclass(frozen=True)
class LayerOptions(RunOptions):
    """Temporal layers by themselves at the shapes of the paper's U-Net: inference, and a training step.

    Ours, the published form of the same layers with the same weights, and the usual rivals. Time in turns in one
    process after a check of output and gradients against float64; peak memory and saved bytes in a process per layer.
    Writes layers.json, .csv, .md, .html and the pictures as .svg and .png, light and dark.
    """

    layers: tuple[str, ...] = ALL
    """Layers to compare: attention-einsum, attention-sdpa, sdpa-rotary, flex-attention, linear-attention, s4d, bi-s4d,
    s6, bi-s6; the last four also with another mixer than mamba, as bi-s6/gss, with memory "fast", as bi-s6:fast, and as
    published, as bi-s6:published. Times are compared with bi-s6."""

    levels: tuple[int, ...] = (1, 2, 3, 4)
    """Levels of the U-Net that are measured with clips of --size pixels, at the least number of --frames."""

    size: int = 32
    """Height and width of these clips in pixels; the paper's is 32."""

    frames: tuple[int, ...] = (16, 64, 256, 1024)
    """Clip lengths that are measured at one level, --sweep-level, with clips of --sweep-size pixels."""

    sweep_level: int = 3
    """Level at which all clip lengths are measured."""

    sweep_size: int = 16
    """Height and width of the clips there, small so that long ones take seconds."""

    launches: int | None = None
    """Timed calls per layer, shape and mode: on a CPU turns, in each of which a short call is repeated. Default: 5 on a
    CPU, 200 on a GPU."""

    budget_seconds: float = 5.0
    """Time that these calls may take together; fewer are made then. A layer of which three calls take longer is not
    timed, and the results say so."""

    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    """CPU threads, pinned for every measurement."""

    @classmethod
    def quick(cls, device: str = "cpu") -> "LayerOptions":
        """Part of `bench all`."""
        launches = 4 if device == "cpu" else None
        return cls(device=device, layers=QUICK, levels=(), frames=(16, 64, 256), launches=launches, budget_seconds=1.8)

    @classmethod
    def full(cls, device: str = "cpu") -> "LayerOptions":
        """Part of `bench all --full`."""
        return cls(device=device, levels=(1, 4), budget_seconds=10.0)

    def check(self) -> None:
        """InputError on the first option that cannot be used."""
        for name in self.layers:
            try:
                candidate_named(name)
            except ValueError as error:
                raise InputError(f"--layers: {error}") from error
        for option, values, is_needed in (
            ("--layers", self.layers, True), ("--levels", self.levels, False), ("--frames", self.frames, True),
        ):  # fmt: skip
            if is_needed and not values:
                raise InputError(f"{option}: expected at least one, got none")
            check_distinct(option, values)
        for option, level in (*(("--levels", level) for level in self.levels), ("--sweep-level", self.sweep_level)):
            if not 1 <= level <= len(WIDTHS):
                raise InputError(f"{option}: expected levels from 1 to {len(WIDTHS)}, got {level}")
        for option, value in (
            *(("--frames", count) for count in self.frames), ("--threads", self.threads),
            ("--launches", self.timed_launches()),
        ):  # fmt: skip
            if value < 1:
                raise InputError(f"{option}: expected a whole number of at least 1, got {value}")
        for option, size in (("--size", self.size), ("--sweep-size", self.sweep_size)):
            if size < 1 or size % STRIDE:
                raise InputError(f"{option}: expected a multiple of {STRIDE} pixels, got {size}")
        check_device(self.device)
        check_positive("--budget-seconds", self.budget_seconds)

    def timed_launches(self) -> int:
        if self.launches is not None:
            return self.launches
        return 5 if self.device == "cpu" else 200

    def shapes(self) -> list[Shape]:
        """Every shape once: the levels, then one level for all numbers of frames from the least on."""
        frames = sorted(self.frames)
        levels = [Shape(level, self.size, frames[0]) for level in self.levels]
        sweep = [Shape(self.sweep_level, self.sweep_size, count) for count in frames]
        return list(dict.fromkeys([*levels, *sweep]))
