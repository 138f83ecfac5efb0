"""One call of a scan, of any kind, as its kernels need it: the plan of launches, and memory for gradients."""

from __future__ import annotations

import math

import torch
import triton.language as tl
from torch import Tensor

from ..ops import BOTH, CAT, MEAN, REVERSE
from .launch import Tilings, ceil, next_power_of_two, sizes_of
from .layout import Sequence, Sizes, sequence_view
from .tiles import Outputs, Part


class Call:
    """Arguments of a scan, which states each launch takes, and which parts its results are the sum of."""

    def __init__(self, tensors, direction: int, merge: int, states: int, groups: int, at_once: int, tilings: Tilings):
        self.tensors, self.direction = tensors, direction
        u = tensors.u
        self.halves = direction == BOTH and merge == CAT
        self.scale = 0.5 if merge == MEAN else 1.0
        self.is_empty = u.shape[0] == 0 or u.shape[1] == 0 or math.prod(u.shape[3:]) == 0
        self.tiling = tilings.of(u)
        self.count = 2 if direction == BOTH else 1  # of directions
        self.states_at_once = min(at_once, next_power_of_two(states))
        self.launches = max(1, ceil(states, self.states_at_once))
        self.is_uneven = states != self.states_at_once * self.launches
        self.sizes = sizes_of(u, states, groups, self.tiling)

    def name_of(self, name: str, direction: int) -> str:
        """The argument that a direction uses: the reverse one its own where it is given."""
        own = direction == 1 and getattr(self.tensors, f"{name}_b") is not None
        return f"{name}_b" if own else name

    def of(self, name: str, direction: int) -> Tensor | None:
        return getattr(self.tensors, self.name_of(name, direction))

    def is_shared(self, name: str) -> bool:
        """Both directions use this argument."""
        return self.direction == BOTH and getattr(self.tensors, f"{name}_b", self) is None

    def part(self, direction: int, launch: int, shared: bool) -> Part:
        """The place of one walk among those that make up a result, which is shared by both directions or is not."""
        before = launch > 0 or (shared and direction > 0)
        after = launch < self.launches - 1 or (shared and direction < self.count - 1)
        values = (self.direction == REVERSE or direction == 1, launch == 0, before, not after)
        return Part(*map(tl.constexpr, values))

    def sizes_of_launch(self, launch: int) -> Sizes:
        return self.sizes._replace(first_state=launch * self.states_at_once)

    def outputs(self, y: Sequence, direction: int) -> Outputs:
        """Where the forward pass puts y."""
        flags = map(tl.constexpr, (self.scale, False, True))
        return Outputs(*y.views(direction, self.halves), sequence_view(self.tensors.z), None, None, None, *flags)

    def y_is_sum(self) -> bool:
        return self.launches > 1 or (self.count > 1 and not self.halves)


class Results:
    """Memory for the gradients of one call: sequences, which kernels write, and parameters, whose parts are summed up
    here. `y`, if given, is to receive the output of the forward pass."""

    def __init__(self, call: Call, gradients: tuple[Tensor, ...], needs: int, y: Tensor | None, dy: Tensor):
        self.call, self.dy, self.has_y = call, dy, y is not None
        fields = zip(call.tensors._fields, call.tensors, gradients, strict=True)
        self.wanted = {
            name: gradient
            for index, (name, tensor, gradient) in enumerate(fields)
            if tensor is not None and needs >> index & 1
        }
        self.sums: dict[str, Tensor] = {}
        self.written = {
            name: Sequence(self.wanted[name], call.launches > 1 or call.is_shared(name))
            for name in ("u", "delta", "u_b", "delta_b")
            if name in self.wanted and (call.count > 1 or not name.endswith("_b"))
        }
        if "z" in self.wanted:
            self.written["z"] = Sequence(self.wanted["z"], call.halves)
        if y is not None or "z" in self.wanted:
            like = torch.empty_like(dy, dtype=torch.float32) if y is None else y
            self.written["y"] = Sequence(like, call.y_is_sum())

    def views(self, name: str, direction: int, halves: bool = False):
        """(gradient, where parts of it wait), both None if it is not wanted."""
        return self.written[name].views(direction, halves) if name in self.written else (None, None)

    def outputs(self, direction: int) -> Outputs:
        """Where the walks of a direction find dy and put dz."""
        call = self.call
        dy = self.dy.chunk(2, 1)[direction] if call.halves else self.dy
        y, y_sum = self.views("y", direction, call.halves)
        flags = (call.scale, call.halves and direction == 1, not call.halves or direction == 1)
        return Outputs(
            y if self.has_y else None, y_sum, sequence_view(call.tensors.z), sequence_view(dy),
            *self.views("z", direction), *map(tl.constexpr, flags),
        )  # fmt: skip

    def part_of(self, name: str, direction: int, launch: int) -> tuple[tl.constexpr, tl.constexpr]:
        """Whether parts of the gradient of `name` came before, and whether this is the last."""
        part = self.call.part(direction, launch, self.call.is_shared(name))
        return part.ADD, part.FINAL

    def scratch(self, *shape: int) -> Tensor:
        return torch.empty(shape, dtype=torch.float32, device=self.dy.device)

    def checkpoints(self, steps: int, floats_per_state: int) -> Tensor:
        """Memory for the states of every program's tile, every few steps."""
        size, tiling = self.call.sizes, self.call.tiling
        elements = floats_per_state * self.call.states_at_once * tiling.block_d * tiling.block_s
        return self.scratch(size.programs, ceil(size.length, steps), elements)

    def add(self, name: str, direction: int, part: Tensor) -> None:
        """One direction's gradient of a parameter, B or C."""
        name = self.call.name_of(name, direction)
        if name in self.wanted:
            part = part.reshape(self.wanted[name].shape)
            self.sums[name] = self.sums[name] + part if name in self.sums else part

    def finish(self) -> None:
        """Bring everything to where it belongs. What no direction uses has the gradient zero."""
        for sequence in self.written.values():
            sequence.finish()
        for name, gradient in self.wanted.items():
            if name in self.sums:
                gradient.copy_(self.sums[name])
            elif self.call.is_empty or (name.endswith("_b") and self.call.count == 1):
                gradient.zero_()
