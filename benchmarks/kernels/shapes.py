"""The shapes that the scan is measured at, by name, each with where it comes from. Imports no torch."""

import re
from dataclasses import dataclass, replace

STATES = 16
MODES = ("forward", "forward+backward")  # what is timed at each


@dataclass(frozen=True)
class Shape:
    sequences: int
    channels: int
    length: int
    states: int

    def elements(self) -> int:
        """Of one (batch, channels, length) tensor."""
        return self.sequences * self.channels * self.length

    def exponentials(self) -> int:
        """exp2 evaluations of one pass over both directions."""
        return 2 * self.elements() * self.states

    def traffic_bytes(self, mode: str, itemsize: int) -> float:
        """Every tensor of a "forward" or "backward" pass once. Forward: u, z, both deltas and y. Backward: the same,
        and the gradients of all but y. B, C and their gradients are shared by the channels."""
        shared = 4 * self.states / self.channels
        tensors = 5 + shared if mode == "forward" else 9 + 2 * shared
        return self.elements() * tensors * itemsize

    def least_bytes(self, itemsize: int) -> int:
        """Of u, z, both deltas and y, and their gradients, which training has in memory at once."""
        return 10 * self.elements() * itemsize


@dataclass(frozen=True)
class NamedShape:
    """is_sweep: one of a row in which a size grows; measured in one layout and type, against the cheaper rivals.
    is_alone: against none, where a rival's time is in proportion to the size."""

    name: str
    shape: Shape
    source: str
    is_sweep: bool = False
    is_alone: bool = False


def _named(name: str, sequences: int, length: int, channels: int, source: str, is_sweep: bool = False) -> NamedShape:
    return NamedShape(name, Shape(sequences, channels, length, STATES), source, is_sweep)


LEVELS = tuple(  # twice the width of the level, as the mixer expands it; one sequence per pixel
    _named(f"paper-{level}", (32 >> (level - 1)) ** 2, 16, 224 << (level - 1),
           f"level {level} of the paper's U-Net: 32×32 pixels, 16 frames, base width 112")
    for level in (1, 2, 3, 4)
)  # fmt: skip
BASE = _named("base", 1024, 64, 128, "what the sweep over lengths goes through")
FOUND = (
    *LEVELS,
    _named("paper-64", 4096, 16, 224, "level 1 of the paper's U-Net at 64×64 pixels"),
    _named("mamba-284", 4096, 16, 1024, "mamba#284, asked by an author of the paper"),
    _named("diffusers-65536", 65_536, 16, 64, "64×64 pixels, batch 16: where diffusers' temporal attention fails"),
    BASE,
)
LENGTHS = tuple(
    _named(f"length-{length}", 1024, length, 128, "sweep over lengths", True)
    for length in (8, 16, 32, 128, 256, 512, 1024)
)
CHANNELS = tuple(
    _named(f"channels-{channels}", 256, 64, channels, "sweep over channels", True)
    for channels in (64, 224, 448, 896, 1792)
)
SEQUENCES = tuple(
    NamedShape(f"sequences-{label}", Shape(sequences, 64, 16, STATES), "sweep over sequences", True, is_alone=True)
    for label, sequences in (("1k", 2**10), ("4k", 2**12), ("16k", 2**14), ("256k", 2**18), ("1M", 2**20))
)
SHAPES = {named.name: named for named in (*FOUND, *LENGTHS, *CHANNELS, *SEQUENCES)}


def shape_named(name: str, states: int) -> NamedShape:
    """One of SHAPES with so many states, or SEQUENCESxLENGTHxCHANNELS; ValueError saying what there is."""
    if name in SHAPES:
        return replace(SHAPES[name], shape=replace(SHAPES[name].shape, states=states))
    sizes = re.fullmatch(r"([1-9][0-9]{0,9})x([1-9][0-9]{0,9})x([1-9][0-9]{0,9})", name)
    if not sizes:
        expected = "SEQUENCESxLENGTHxCHANNELS such as 1024x64x128, or some of " + ", ".join(SHAPES)
        raise ValueError(f"unknown shape {name!r}; expected {expected}")
    sequences, length, channels = map(int, sizes.groups())
    return NamedShape(name, Shape(sequences, channels, length, states), "as asked for")
