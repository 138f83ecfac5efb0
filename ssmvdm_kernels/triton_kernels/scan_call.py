"""One call of the selective scan as its kernels need it."""

from __future__ import annotations

import math

import torch
import triton.language as tl
from torch import Tensor

from ..ops import BOTH, CAT, MEAN, REVERSE, ScanTensors
from .launch import Tilings, sizes_of, states_of_launches
from .layout import check, modulation_view, sequence_view
from .scan_walk import Direction, Options
from .tiles import Part


class ScanCall:
    """Checked arguments, the views of each direction, and the plan of the launches."""

    def __init__(
        self, op: str, tensors: ScanTensors, direction: int, merge: int, softplus: bool, tilings: Tilings, steps: int
    ):
        self.op, self.tensors, self.direction, self.merge = op, tensors, direction, merge
        self._check()
        u = tensors.u
        self.halves = direction == BOTH and merge == CAT
        self.scale = 0.5 if merge == MEAN else 1.0
        self.groups = self._groups()
        self.is_empty = u.shape[0] == 0 or u.shape[1] == 0 or math.prod(u.shape[3:]) == 0
        self.tiling = tilings.of(u)
        self.directions = [self._direction(reverse) for reverse in (range(2) if direction == BOTH else (0,))]
        at_once, self.launches = states_of_launches(tensors.A.shape[1])
        self.sizes = sizes_of(u, tensors.A.shape[1], self.groups, self.tiling)
        self.options = Options(
            STATES=tl.constexpr(at_once),
            UNEVEN=tl.constexpr(at_once * self.launches != tensors.A.shape[1]),
            SOFTPLUS=tl.constexpr(softplus),
            STEPS=tl.constexpr(steps),
            RAGGED=tl.constexpr(u.shape[2] % steps != 0),
        )

    def name_of(self, name: str, direction: int) -> str:
        """The argument that a direction uses: the reverse one its own where it is given."""
        own = direction == 1 and getattr(self.tensors, f"{name}_b") is not None
        return f"{name}_b" if own else name

    def is_shared(self, name: str) -> bool:
        """Both directions use this argument."""
        return self.direction == BOTH and getattr(self.tensors, f"{name}_b", self) is None

    def part(self, direction: int, launch: int, shared: bool) -> Part:
        """The place of one walk among those that make up a result, which is shared by both directions or is not."""
        before = launch > 0 or (shared and direction > 0)
        after = launch < self.launches - 1 or (shared and direction < len(self.directions) - 1)
        values = (self.direction == REVERSE or direction == 1, launch == 0, before, not after)
        return Part(*map(tl.constexpr, values))

    def sizes_of_launch(self, launch: int):
        return self.sizes._replace(first_state=launch * self.options.STATES.value)

    def _direction(self, direction: int) -> Direction:
        def of(name: str) -> Tensor | None:
            return getattr(self.tensors, self.name_of(name, direction))

        dims = self.tensors.u.dim()
        A, D, bias = (None if t is None else t.contiguous() for t in (of("A"), of("D"), of("delta_bias")))
        B, C = (modulation_view(of(name), dims, self.groups) for name in "BC")
        return Direction(sequence_view(of("u")), sequence_view(of("delta")), A, B, C, D, bias)

    def _groups(self) -> int:
        """So many that each has its own B or its own C, whichever come in more groups."""
        t, dims = self.tensors, self.tensors.u.dim()
        groups = math.lcm(*(x.shape[1] for x in (t.B, t.C, t.B_b, t.C_b) if x is not None and x.dim() == dims + 1))
        if groups == 0 or t.u.shape[1] % groups:
            raise ValueError(f"{self.op}: the {t.u.shape[1]} channels must be a multiple of the groups of B and C.")
        return groups

    def _check(self) -> None:
        t = self.tensors
        u, states = t.u, t.A.shape[-1]
        batch, channels, length, *lanes = u.shape
        for name, x in zip(t._fields, t, strict=True):
            if x is None:
                continue
            kind, dtype = name.removesuffix("_b"), torch.float32
            if kind in ("u", "delta", "z"):
                shape, dtype = u.shape, u.dtype
            elif kind in ("B", "C") and x.dim() > 2:
                groups = x.shape[1 : 1 + x.dim() - u.dim()]
                shape, dtype = (batch, *groups, states, length, *lanes), u.dtype
            elif kind in ("A", "B", "C"):
                shape = (channels, states)
            elif kind == "initial_state":
                shape = (batch, channels, states, *lanes)
            else:
                shape = (channels,)
            check(self.op, name, x, shape, dtype, u.device)
        if self.direction == BOTH and t.initial_state is not None:
            raise ValueError(f"{self.op}: initial_state needs a single direction.")
