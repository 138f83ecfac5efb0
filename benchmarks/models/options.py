"""Options of the memory benchmark, apart from it so that the command line can offer them without importing torch."""

import os
from dataclasses import dataclass, field

from benchmarks.options import RunOptions, check_device, check_distinct, check_positive
from ssmvdm.compared import FRAMES, LAYER_NAMES, Network, layer_named
from ssmvdm.errors import InputError
from ssmvdm.process_memory import GIB, affordable_bytes

LONG_FRAMES = (512, 1024)
GPU_SEARCH_GIB = 16.0  # few enough frames for a try of seconds
QUICK_LAYERS = ("attention-einsum", "attention-sdpa", "linear-attention", "bi-s4d", "bi-s6")


@dataclass(frozen=True)
class MemoryOptions(RunOptions):
    """Memory and speed of the whole U-Net against frames, for every temporal layer: training and sampling.

    Trains a 3-D U-Net (Adam, l2), small by default, on clips of the embedded maze walk and samples from it, one fresh
    process per layer and number of frames; searches for the largest number of frames that still trains in a given
    memory; compares the time of memory "lean" with that of "fast". Of the paper's full network it counts the bytes
    saved for backward, which needs no memory: against frames, against width, and up to the memory of a GPU. Writes
    memory.json, .csv, .md, .html and the pictures as .svg and .png, light and dark.
    """

    layers: tuple[str, ...] = LAYER_NAMES
    """Temporal layers to compare: attention-einsum, attention-sdpa, linear-attention, s4d, bi-s4d, s6, bi-s6; the last
    four, which have the mixer mamba, also with another one, as in bi-s6/gss (mlp, glu, glu-mlp, gss)."""

    frames: tuple[int, ...] = FRAMES
    """Clip lengths to measure."""

    size: int = 16
    """Height and width of the clips in pixels, a multiple of 8."""

    base_channels: int = 16
    """Width of the U-Net, a multiple of 8; the paper's is 112. Attention has 8 times as many features, as there."""

    sampling_frames: tuple[int, ...] | None = None
    """Lengths of the clips that are sampled. Default: --frames."""

    repeats: int = 3
    """Timed steps per configuration, after a warm-up; fewer where they take long."""

    threads: int = field(default_factory=lambda: os.cpu_count() or 1)
    """CPU threads, pinned for every measurement."""

    memory_limit_gib: float | None = None
    """Memory one process may take before it counts as out of memory. Default: 90 % of what is free now, or the
    whole GPU."""

    search_limit_gib: float | None = 0.5
    """Memory for which the largest number of frames is searched that the U-Net can be trained with; None leaves the
    search out."""

    search_resolution: int = 8
    """The search ends when a number of frames that fits and one that does not are so far apart."""

    widths: tuple[int, ...] = (32, 64, 112, 160, 224, 320)
    """Base widths at which the memory of the paper's network is counted, multiples of 8."""

    width_frames: tuple[int, ...] = (16, 64, 256)
    """Clip lengths at which that is done."""

    skip_paper: bool = False
    """Leave out everything that is counted at the paper's full setting."""

    @classmethod
    def quick(cls, device: str = "cpu") -> "MemoryOptions":
        """Part of `bench all`."""
        few: dict = {"sampling_frames": (16, 256), "widths": (64, 112, 160), "width_frames": (64,)}
        return cls(device=device, layers=QUICK_LAYERS, repeats=2, search_limit_gib=None, **few)

    @classmethod
    def full(cls, device: str = "cpu") -> "MemoryOptions":
        """Part of `bench all --full`. A GPU trains and samples the paper's own network, within all its memory."""
        frames = (*FRAMES, *LONG_FRAMES)
        if device == "cpu":
            return cls(frames=frames, sampling_frames=(16, 64, 256, 1024), memory_limit_gib=8.0)
        paper = Network.paper()
        size, width = paper.size, paper.base_channels
        return cls(device=device, frames=frames, size=size, base_channels=width, search_limit_gib=GPU_SEARCH_GIB)

    def check(self) -> None:
        """InputError on the first option that cannot be used."""
        if not self.layers:
            raise InputError(f"--layers: expected at least one of {', '.join(LAYER_NAMES)}, got none")
        for name in self.layers:
            try:
                layer_named(name)
            except ValueError as error:
                raise InputError(f"--layers: {str(error).replace('one of', 'some of')}") from error
        several = {"--layers": self.layers, "--frames": self.frames, "--sampling-frames": self.sampled_frames(),
                   "--widths": self.widths, "--width-frames": self.width_frames}  # fmt: skip
        for option, values in several.items():
            if not values:
                raise InputError(f"{option}: expected at least one number, got none")
            check_distinct(option, values)
        lengths = ("--frames", "--sampling-frames", "--width-frames")
        counts = [(option, count) for option in lengths for count in several[option]]
        counts += [("--repeats", self.repeats), ("--threads", self.threads)]
        for option, value in [*counts, ("--search-resolution", self.search_resolution)]:
            if value < 1:
                raise InputError(f"{option}: expected a whole number of at least 1, got {value}")
        check_device(self.device)
        for option, limit in (
            ("--memory-limit-gib", self.memory_limit_gib), ("--search-limit-gib", self.search_limit_gib),
        ):  # fmt: skip
            if limit is not None:
                check_positive(option, limit)
        try:
            self.network()
            for width in self.widths:
                Network.paper().of_width(width)
        except ValueError as error:
            raise InputError(str(error)) from error

    def sampled_frames(self) -> tuple[int, ...]:
        return self.frames if self.sampling_frames is None else self.sampling_frames

    def network(self) -> Network:
        return Network.small(self.base_channels, self.size)

    def limit_bytes(self) -> int | None:
        if self.memory_limit_gib is not None:
            return int(self.memory_limit_gib * GIB)
        return affordable_bytes() if self.device == "cpu" else None
