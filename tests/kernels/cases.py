"""Every scan case of the suite is made here: sizes, options, data types, memory layouts and values, by name.

A `Case` is a frozen description with a readable name; `inputs()` makes its tensors. Values are drawn in float64 from
the case's own seed, rounded to their dtype, then laid out in memory, so one name is one set of numbers in any layout.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import random
import zlib
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor

from .truth import NAMES, Options

SEQUENCES = ("u", "delta", "z", "B", "C", "u_b", "delta_b", "B_b", "C_b")
SEPARATE = {
    "shared": (),
    "parameters": ("A_b", "D_b", "delta_bias_b"),
    "scan": ("delta_b", "A_b", "B_b", "C_b", "D_b", "delta_bias_b"),
    "all": ("u_b", "delta_b", "A_b", "B_b", "C_b", "D_b", "delta_bias_b"),
}
LAYOUTS = ("lanes", "length", "channels")
ODD_LAYOUTS = ("mixed", "expanded", "narrowed", "stepped", "offset", "cropped", "batch-inner", "odd-strides")
BOTH_MERGES = ("sum", "mean", "cat", "none")


@dataclass(frozen=True)
class Case:
    """One call. B_form, C_form: "shared" over channels | "groups" (2) | "constant" in time; `B_b_form` None: as B.

    `odd_one` names the only tensor that has the layout, "dy" and "dlast" among them; the others then lie as "lanes".
    """

    direction: str = "both"
    merge: str = "sum"
    batch: int = 2
    channels: int = 6
    length: int = 7
    lanes: tuple[int, ...] = (3,)
    states: int = 4
    B_form: str = "shared"
    C_form: str = "shared"
    B_b_form: str | None = None
    separate: str = "all"
    D: bool = True
    z: bool = True
    bias: bool = True
    softplus: bool = True
    initial: bool = False
    last: bool = False
    dtype: torch.dtype = torch.float32
    layout: str = "lanes"
    odd_one: str | None = None
    values: str = "plain"
    seed: int = 0

    @property
    def name(self) -> str:
        """Only what differs from the default, so that names stay short enough to read."""
        words = []
        for f in dataclasses.fields(self):
            value = getattr(self, f.name)
            if value == f.default:
                continue
            if isinstance(value, tuple):
                value = "x".join(str(v) for v in value) or "none"
            words.append(f"{f.name}={str(value).removeprefix('torch.')}")
        return ",".join(words) or "default"

    @property
    def options(self) -> Options:
        """What the truth computes; "none" is "cat" whose halves come apart."""
        return Options(self.direction, "cat" if self.merge == "none" else self.merge, self.softplus)

    def given(self) -> tuple[str, ...]:
        """The names of the tensors that this case passes."""
        return tuple(self.shapes())

    @property
    def has_last(self) -> bool:
        """Only a call in one direction has a last state."""
        return self.last and self.direction != "both"

    @property
    def parameter_dtype(self) -> torch.dtype:
        return torch.float64 if self.dtype == torch.float64 else torch.float32

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """name -> shape of every tensor that this case passes."""
        sequence = (self.batch, self.channels, self.length, *self.lanes)
        found = {"u": sequence, "delta": sequence, "A": (self.channels, self.states)}
        found |= {"B": self._form(self.B_form), "C": self._form(self.C_form)}
        found |= {name: (self.channels,) for name, has in (("D", self.D), ("delta_bias", self.bias)) if has}
        if self.z:
            found["z"] = sequence
        if self.direction == "both":
            for name in SEPARATE[self.separate]:
                if name.removesuffix("_b") in found:
                    found[name] = found[name.removesuffix("_b")]
            if "B_b" in found and self.B_b_form:
                found["B_b"] = self._form(self.B_b_form)
        elif self.initial:
            found["initial_state"] = (self.batch, self.channels, self.states, *self.lanes)
        return found

    def _form(self, form: str) -> tuple[int, ...]:
        if form == "constant":
            return (self.channels, self.states)
        groups = {"shared": (), "groups": (2,)}[form]
        return (self.batch, *groups, self.states, self.length, *self.lanes)

    def dtype_of(self, name: str) -> torch.dtype:
        """Sequences have the storage dtype; parameters, constant B and C, and states that of the arithmetic."""
        constant = name in ("B", "C", "B_b", "C_b") and len(self.shapes()[name]) == 2
        return self.dtype if name in SEQUENCES and not constant else self.parameter_dtype

    def inputs(self, device: str = "cpu") -> dict[str, Tensor | None]:
        """All 16 tensors by name, None where not given; same case, same bits."""
        shapes = self.shapes()
        found: dict[str, Tensor | None] = dict.fromkeys(NAMES)
        for index, (name, shape) in enumerate(shapes.items()):
            generator = torch.Generator().manual_seed(zlib.crc32(f"{name} {self.seed}".encode()))
            value = draw(name.removesuffix("_b"), shape, self, generator).to(device, self.dtype_of(name))
            found[name] = self.placed(name, value, index)
        return found

    def placed(self, name: str, value: Tensor, index: int) -> Tensor:
        """A tensor of this case where it lies in memory."""
        return lay_out(value, self.layout if self.odd_one in (None, name) else "lanes", index)

    def output_gradients(self, device: str = "cpu") -> tuple[Tensor, Tensor | None]:
        """dy and dlast_state, dy laid out as the inputs are."""
        generator = torch.Generator().manual_seed(zlib.crc32(f"dy {self.seed}".encode()))
        channels = self.channels * (2 if self.options.direction == "both" and self.options.merge == "cat" else 1)
        shape = (self.batch, channels, self.length, *self.lanes)
        dy = torch.randn(shape, generator=generator, dtype=torch.float64).to(device, self.dtype)
        state = (self.batch, self.channels, self.states, *self.lanes)
        dlast = torch.randn(state, generator=generator, dtype=torch.float64).to(device, self.parameter_dtype)
        if not self.has_last:
            return self.placed("dy", dy, 1), None
        return self.placed("dy", dy, 1), self.placed("dlast", dlast, 2) if self.odd_one == "dlast" else dlast


def draw(name: str, shape: tuple[int, ...], case: Case, generator: torch.Generator) -> Tensor:
    """Values in float64 by the kind of tensor and the case's regime.

    plain: decays per step between about 0.99 and 0.05, as trained models have. strong: delta A down to -20.
    weak: delta A about -1e-4, so that states accumulate. growing: A > 0, slowly.
    """

    def normal():
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    def uniform(low, high):
        return low + (high - low) * torch.rand(shape, generator=generator, dtype=torch.float64)

    if name == "A":
        low, high = {"plain": (0.3, 2.0), "strong": (4.0, 16.0), "weak": (1e-4, 1e-3), "growing": (-0.02, -0.001)}[
            case.values
        ]
        return -uniform(low, high)
    if name == "delta":
        return normal() - 1 if case.softplus else uniform(0.05, 1.2)
    if name == "delta_bias":
        return uniform(-1.0, 0.5) if case.softplus else uniform(0.0, 0.1)
    return normal()


def ordered(x: Tensor, order: list[int]) -> Tensor:
    """The same tensor with memory dense in this order of axes, outermost first."""
    inverse = [order.index(dim) for dim in range(x.dim())]
    return x.permute(order).contiguous().permute(inverse)


def lay_out(x: Tensor, layout: str, index: int = 0) -> Tensor:
    """The values of x in another place in memory; parameters of one or two axes take part too.

    Axis 1 counts as channels, axis -1-lanes as length; only positions are needed, so B and C (whose axis 1 is groups or
    states) go through the same function. `index` tells tensors of one case apart in layouts that mix.
    """
    dims = x.dim()
    if layout.startswith("random-"):
        return scatter(x, random.Random(f"{layout} {index}"))
    if layout == "mixed":
        return lay_out(x, ("lanes", "length", "channels", "narrowed", "offset")[index % 5])
    if layout == "expanded":
        # Equal along one axis, stride 0 there. The values change: the axis repeats its first element.
        axis = (0, 2, 1, dims - 1)[index % 4] % dims
        return x.narrow(axis, 0, min(1, x.shape[axis])).expand(x.shape) if x.numel() else x
    if dims < 3 and layout in ("length", "channels", "batch-inner"):
        return ordered(x, list(range(dims))[::-1])
    if layout == "lanes":
        return x.contiguous()
    if layout == "length":
        return ordered(x, [d for d in range(dims) if d != 2] + [2])
    if layout == "channels":
        return ordered(x, [d for d in range(dims) if d != 1] + [1])
    if layout == "batch-inner":
        return ordered(x, [*range(1, dims), 0])
    if layout == "narrowed":  # what cat, split and narrow leave behind
        axis = min(1, dims - 1)
        pad = x.new_full([3 if d == axis else size for d, size in enumerate(x.shape)], float("nan"))
        return torch.cat([pad, x, pad], axis).narrow(axis, 3, x.shape[axis])
    if layout == "stepped":  # every second element of the last axis
        wide = x.new_full((*x.shape, 2), float("nan"))
        wide[..., 0] = x
        return wide.flatten(-2)[..., ::2] if x.shape[-1] else x
    if layout == "offset":  # contiguous, but not aligned to anything
        buffer = x.new_full((x.numel() + 1,), float("nan"))
        buffer[1:] = x.flatten()
        return buffer[1:].view(x.shape)
    if layout == "cropped":  # lanes cut out of a larger picture: they do not collapse into one axis
        wide = x.new_full([size + 2 if d >= max(dims - 2, 1) else size for d, size in enumerate(x.shape)], float("nan"))
        view = wide
        for d in range(max(dims - 2, 1), dims):
            view = view.narrow(d, 1, x.shape[d])
        view.copy_(x)
        return view
    if layout == "odd-strides":  # axes of size 1 may have any stride
        x = x.contiguous()
        strides = [17 if size == 1 else stride for size, stride in zip(x.shape, x.stride(), strict=True)]
        return x.as_strided(x.shape, strides)
    raise ValueError(f"layout {layout!r} is not known")


# How far the last element lies from the first: around the last that a signed, and beyond what an unsigned int32 counts.
REACHES = {"2^31-1": 2**31 - 1, "2^31": 2**31, "2^31+24": 2**31 + 24, "2^32+24": 2**32 + 24}


def far(x: Tensor, axis: int, reach: int) -> Tensor:
    """The values of x, the last along this axis `reach` elements from the first: memory for all that lies between is
    reserved, and the system gives it only to pages in use. Skips the test where it does not."""
    try:
        address_space = torch.empty(reach + 2**16, dtype=x.dtype)
    except RuntimeError as error:
        pytest.skip(f"no {reach * x.element_size() >> 30} GiB of address space: {error}")
    strides = list(x.contiguous().stride())
    strides[axis] = reach // (x.shape[axis] - 1)
    return address_space.as_strided(x.shape, strides).copy_(x)


def scatter(x: Tensor, rng: random.Random) -> Tensor:
    """The values of x with the axes in any order in memory, gaps of NaN between them and before the first."""
    strides, step = [0] * x.dim(), rng.choice((1, 1, 2))
    for axis in rng.sample(range(x.dim()), x.dim()):
        strides[axis] = step
        step *= x.shape[axis] + rng.choice((0, 0, 1, 3))
    offset = rng.randrange(4)
    view = x.new_full((offset + step,), float("nan")).as_strided(x.shape, strides, offset)
    return view.copy_(x)


# -- families of cases -------------------------------------------------------------------------------------------------

LENGTHS = (*range(1, 34), 63, 64, 65, 127, 128, 129, 255, 256, 257, 1000, 2048)
STATES = (1, 2, 3, 7, 8, 15, 16, 17, 32, 64, 128, 256)
CHANNELS = (1, 2, 3, 4, 7, 8, 9, 15, 16, 17, 31, 33, 48, 65)
LANES = ((), (1,), (3,), (4,), (16,), (17,), (64,), (3, 5), (2, 3, 4))
DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)


def sizes() -> list[Case]:
    """Every length, number of states, channels and lanes of the contract in each of the three real layouts."""
    found = []
    for layout in LAYOUTS:
        # Few sequences of many channels: threads share the channels of a sequence though sequences are left over.
        found.append(Case(batch=17, channels=260, length=3, lanes=(), layout=layout))
        for length in LENGTHS:
            small = {"batch": 1, "channels": 2, "lanes": (2,)} if length > 300 else {}
            found.append(Case(length=length, layout=layout, **small))
        found += [Case(states=n, layout=layout, length=5, channels=2 if n > 32 else 6) for n in STATES]
        found += [Case(channels=n, layout=layout, length=5) for n in CHANNELS]
        found += [Case(lanes=lanes, layout=layout, length=5) for lanes in LANES]
    return list(dict.fromkeys(found))


def classic() -> list[Case]:
    """(batch, channels, length) without lanes, in both of its layouts, where every loop has a different tail."""
    return [
        Case(lanes=(), layout=layout, batch=3, channels=channels, length=length, states=16)
        for layout in ("length", "channels")
        for channels in (3, 16, 19, 32)
        for length in (1, 4, 15, 16, 17, 40)
    ]


def layouts() -> list[Case]:
    """Memory layouts that no fast path was made for, in each direction, at sizes around a vector."""
    return [
        Case(layout=layout, direction=direction, channels=channels, lanes=lanes, length=9, initial=True, last=True)
        for layout in ODD_LAYOUTS
        for direction in ("forward", "reverse", "both")
        for channels, lanes in ((6, (3, 5)), (18, (17,)), (17, ()), (1, (1,)))
    ]


def regimes() -> list[Case]:
    """Strong, weak and growing states at lengths where errors add up."""
    return [
        Case(values=values, length=length, direction=direction, channels=4, batch=1)
        for values in ("strong", "weak", "growing")
        for length in (16, 257)
        for direction in ("forward", "reverse", "both")
    ]


CHOICES = {
    "task": (("forward", "sum"), ("reverse", "sum"), *(("both", merge) for merge in BOTH_MERGES)),
    "dtype": DTYPES,
    "layout": (*LAYOUTS, *ODD_LAYOUTS),
    "B_form": ("shared", "groups", "constant"),
    "C_form": ("shared", "groups", "constant"),
    "B_b_form": (None, "shared", "constant"),
    "separate": tuple(SEPARATE),
    "D": (False, True),
    "z": (False, True),
    "bias": (False, True),
    "softplus": (False, True),
    "initial": (False, True),
    "last": (False, True),
    "length": (1, 2, 8, 19),
    "states": (1, 3, 8, 16, 20),
    "channels": (2, 6, 16, 34),
    "lanes": ((), (1,), (5,), (16,), (3, 7)),
}


def covering(strength: int, names: tuple[str, ...], seed: int, draws: int) -> tuple[Case, ...]:
    """Cases in which any values of any `strength` of these options occur together (a greedy covering array)."""
    rng = random.Random(seed)
    columns = list(itertools.combinations(range(len(names)), strength))
    wanted = [(places, values) for places in columns
              for values in itertools.product(*(CHOICES[names[place]] for place in places))]  # fmt: skip
    missing = set(wanted)

    def covers(row):
        return {(places, tuple(row[place] for place in places)) for places in columns} & missing

    found = []
    for places, values in wanted:
        if (places, values) not in missing:
            continue
        rows = []
        for _ in range(draws):
            row = [rng.choice(CHOICES[name]) for name in names]
            for place, value in zip(places, values, strict=True):
                row[place] = value
            rows.append(tuple(row))
        best = max(rows, key=lambda row: len(covers(row)))
        missing -= covers(best)
        others = {name: rng.choice(CHOICES[name]) for name in CHOICES if name not in names}
        chosen = dict(zip(names, best, strict=True)) | others
        direction, merge = chosen.pop("task")
        found.append(Case(direction=direction, merge=merge, **chosen))
    return tuple(found)


@functools.cache
def pairs() -> tuple[Case, ...]:
    """Every value of every option meets every value of every other one."""
    return covering(2, tuple(CHOICES), seed=1, draws=40)


# Those by which kernels are instantiated, or by which they choose their way through memory.
INSTANTIATED = ("task", "layout", "dtype", "B_form", "C_form", "separate", "z", "softplus", "lanes", "initial")


@functools.cache
def triples() -> tuple[Case, ...]:
    """Any three options that kernels branch on, in every combination of their values."""
    return covering(3, INSTANTIATED, seed=2, draws=12)


def by_tensor() -> list[Case]:
    """24 layouts of each tensor alone, beside others that lie as a video does."""
    anywhere = (*LAYOUTS[1:], *(layout for layout in ODD_LAYOUTS if layout != "mixed"))
    anywhere += tuple(f"random-{number}" for number in range(24 - len(anywhere)))
    both, one = Case(channels=4, lanes=(3, 2)), Case(direction="reverse", initial=True, last=True, lanes=(5,))
    tensors = [(both, name) for name in (*both.given(), "dy")]
    tensors += [(one, name) for name in ("u", "delta", "B", "C", "initial_state", "dy", "dlast")]
    return [dataclasses.replace(case, layout=layout, odd_one=name) for case, name in tensors for layout in anywhere]


def core() -> list[Case]:
    """A few dozen that between them enter every branch: for slow backends and for each instruction set."""
    return [
        *pairs()[:24],
        *[Case(layout=layout, length=17, channels=19, states=16, lanes=(17,)) for layout in LAYOUTS],
        *[Case(dtype=dtype, length=33, states=16, lanes=lanes) for dtype in DTYPES for lanes in ((), (5,))],
    ]
