"""One call of the selective scan as its kernels need it."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import triton.language as tl

from ..ops import BOTH, ScanTensors
from .call import Call
from .launch import Tilings
from .layout import Modulation, View, check, encoded, modulation_view, sequence_view
from .scan_walk import Direction, Options

STATES_AT_ONCE = 16


class ScanCall(Call):
    """Checked arguments, the views of each direction, and the plan of the launches."""

    def __init__(
        self,
        op: str,
        tensors: ScanTensors,
        direction: int,
        merge: int,
        tilings: Tilings,
    ):
        self.op = op
        check_scan(op, tensors, direction)
        self.groups = groups_of(op, tensors)
        states = tensors.A.shape[1]
        super().__init__(tensors, direction, merge, states, self.groups, STATES_AT_ONCE, tilings)
        self.directions = [self._direction(d) for d in range(self.count)]

    def options(self, softplus: bool, steps: int, inner: bool) -> Options:
        ragged = self.tensors.u.shape[2] % steps != 0
        values = (self.states_at_once, self.is_uneven, softplus, steps, ragged, inner and not ragged)
        return Options(*map(tl.constexpr, values))

    def has_inner_time(self, *written: NamedTuple) -> bool:
        """Whether time is the inner axis of everything that varies in time, that is read or in the views written."""
        views = [x for part in (*self.directions, *written) for x in part]
        strides = [x.time for x in views if isinstance(x, View) or (isinstance(x, Modulation) and not x.CONSTANT.value)]
        return set(strides) == {encoded(1)}

    def _direction(self, d: int) -> Direction:
        A, D, bias = (None if t is None else t.contiguous() for t in (self.of(n, d) for n in ("A", "D", "delta_bias")))
        B, C = (modulation_view(self.of(name, d), self.tensors.u.dim(), self.groups) for name in "BC")
        return Direction(sequence_view(self.of("u", d)), sequence_view(self.of("delta", d)), A, B, C, D, bias)


def groups_of(op: str, t: ScanTensors) -> int:
    """So many groups of channels that the channels of each have the same B and the same C."""
    dims = t.u.dim()
    groups = math.lcm(*(x.shape[1] for x in (t.B, t.C, t.B_b, t.C_b) if x is not None and x.dim() == dims + 1))
    if groups == 0 or t.u.shape[1] % groups:
        raise ValueError(f"{op}: the {t.u.shape[1]} channels must be a multiple of the groups of B and C.")
    return groups


def check_scan(op: str, t: ScanTensors, direction: int) -> None:
    """The shapes, types and devices of all arguments."""
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
        check(op, name, x, shape, dtype, u.device)
    if direction == BOTH and t.initial_state is not None:
        raise ValueError(f"{op}: initial_state needs a single direction.")
