"""The backward scan. A program has a slice of channels and a slice of sequences, and takes tile after tile of them.

For each tile and direction the states are computed again and kept every few steps; then the adjoint walks back over
them (scan_adjoint.py). Sums over the channels of a tile go through registers, from tile to tile through memory that
belongs to one program; what several programs have summed up is added in a fixed order at the end.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from ..ops import BOTH, NEEDS_Y, SCAN, ScanTensors, output_shape
from .arithmetic import decoded
from .launch import Tiling, Tilings, ceil, run
from .layout import Sequence, check, encoded, sequence_view, state_view
from .scan_adjoint import Gradients, Sums, put_over_sequences, walk_again, walk_back
from .scan_call import ScanCall
from .scan_walk import load_states, store_states
from .tiles import Outputs, tile_at


@triton.jit
def one_direction(
    x, o, to, initial, dlast, dinitial, kept, d_slice, s_slice, tile, add_d, add_s, sizes, O, PART
):
    walk_again(load_states(initial, tile, sizes, O), x, o, kept, tile, sizes, O, PART)
    tl.debug_barrier()
    c = walk_back(load_states(dlast, tile, sizes, O), x, o, to, kept, d_slice, tile, add_d, sizes, O, PART)
    put_over_sequences(c, x, to, s_slice, tile, add_s, sizes, O, PART)
    if dinitial is not None:
        store_states(dinitial, c.q, tile, sizes, O)
    tl.debug_barrier()


@triton.jit
def backward_kernel(
    ahead, back, outputs, outputs_back, to, to_back, initial, dlast, dinitial, kept, sizes, O, PART, PART_BACK,
    BLOCK_D: tl.constexpr, BLOCK_S: tl.constexpr,
):  # fmt: skip
    sizes = decoded(sizes)
    program = tl.program_id(0).to(tl.int64)
    s_slice, rest = program % sizes.sequence_slices, program // sizes.sequence_slices
    g, d_slice = rest % sizes.groups, rest // sizes.groups
    chunks = (sizes.length + O.STEPS - 1) // O.STEPS
    element = tl.arange(0, BLOCK_D)[:, None] * BLOCK_S + tl.arange(0, BLOCK_S)[None, :]
    kept = kept + program * chunks * (O.STATES * BLOCK_D * BLOCK_S) + element
    first_block = d_slice * sizes.channel_blocks // sizes.channel_slices
    first_sequences = s_slice * sizes.sequence_blocks // sizes.sequence_slices
    for block in range(first_block, (d_slice + 1) * sizes.channel_blocks // sizes.channel_slices):
        for sequences in range(first_sequences, (s_slice + 1) * sizes.sequence_blocks // sizes.sequence_slices):
            tile = tile_at(sequences, g, block, sizes, BLOCK_D, BLOCK_S)
            add_d, add_s = block > first_block, sequences > first_sequences
            one_direction(
                ahead, outputs, to, initial, dlast, dinitial, kept, d_slice, s_slice, tile, add_d, add_s, sizes, O, PART
            )
            if back is not None:
                one_direction(
                    back, outputs_back, to_back, None, None, None, kept, d_slice, s_slice, tile, add_d, add_s, sizes, O,
                    PART_BACK,
                )  # fmt: skip


TILINGS = Tilings(channels=Tiling(32, 1), lanes=Tiling(2, 16))
STEPS = 4  # between checkpoints; the states of so many steps are in registers at a time


def scan_backward(*arguments) -> tuple[Tensor, ...]:
    """The operator `scan_backward` of ops.py."""
    dy, dlast, *tensors, direction, merge, delta_softplus, needs = arguments
    results = SCAN.backward_shapes(*arguments)
    call = ScanCall("scan_backward", ScanTensors(*tensors), direction, merge, delta_softplus, TILINGS, STEPS)
    u = call.tensors.u
    check(call.op, "dy", dy, output_shape(u, direction, merge), u.dtype, u.device)
    if dlast is not None:
        if direction == BOTH:
            raise ValueError("scan_backward: dlast_state needs a single direction.")
        state = (*u.shape[:2], call.tensors.A.shape[1], *u.shape[3:])
        check(call.op, "dlast_state", dlast, state, torch.float32, u.device)
    named = zip(ScanTensors._fields, results[:-1], strict=True)
    wanted = {
        name: result
        for index, (name, result) in enumerate(named)
        if getattr(call.tensors, name) is not None and needs >> index & 1
    }
    backward = Backward(call, wanted, results[-1] if needs & NEEDS_Y else None, dy)
    if not call.is_empty:
        backward.launch(dlast)
    backward.finish()
    return results


class Backward:
    """Memory for the results of one call and for what lies between, and the launches."""

    def __init__(self, call: ScanCall, wanted: dict[str, Tensor], y: Tensor | None, dy: Tensor):
        self.call, self.wanted, self.dy = call, wanted, dy
        self.sums: dict[str, Tensor] = {}  # gradients of parameters, B and C, as far as they have been added up
        several, both = call.launches > 1, len(call.directions) > 1
        self.written = {
            name: Sequence(wanted[name], several or call.is_shared(name))
            for name in ("u", "delta", "u_b", "delta_b")
            if name in wanted and (both or not name.endswith("_b"))
        }
        if "z" in wanted:
            self.written["z"] = Sequence(wanted["z"], call.halves)
        if y is not None or "z" in wanted:
            like = torch.empty_like(dy, dtype=torch.float32) if y is None else y
            self.written["y"] = Sequence(like, several or (both and not call.halves))
        self.has_y = y is not None

    def launch(self, dlast: Tensor | None) -> None:
        call, count = self.call, len(self.call.directions)
        size = call.sizes
        programs = size.channel_slices * size.groups * size.sequence_slices
        elements = call.options.STATES.value * call.tiling.block_d * call.tiling.block_s
        kept = torch.empty(
            programs * ceil(size.length, STEPS) * elements, dtype=torch.float32, device=self.dy.device
        )
        gradients = [self._gradients(d) for d in range(count)]
        ahead, back = (*call.directions, None)[:2]
        outputs = [self._outputs(d) for d in range(count)]
        states = [state_view(t) for t in (call.tensors.initial_state, dlast, self.wanted.get("initial_state"))]
        for launch in range(call.launches):
            to = [self._with_parts(gradients[d], d, launch) for d in range(count)]
            parts = [call.part(d, launch, shared=not call.halves) for d in range(2)]
            run(backward_kernel, programs, self.dy.device, call.tiling, ahead, back, outputs[0], outputs[-1],
                to[0], to[-1], *states, kept, O=call.options, PART=parts[0], PART_BACK=parts[1],
                sizes=call.sizes_of_launch(launch))  # fmt: skip
        for d in range(count):
            self._add_up(d, gradients[d])

    def finish(self) -> None:
        for sequence in self.written.values():
            sequence.finish()
        for name, gradient in self.wanted.items():
            if name in self.sums:
                gradient.copy_(self.sums[name].reshape(gradient.shape))
            elif self.call.is_empty or (name.endswith("_b") and len(self.call.directions) == 1):
                gradient.zero_()

    def _views(self, name: str, direction: int, halves: bool = False):
        return self.written[name].views(direction, halves) if name in self.written else (None, None)

    def _outputs(self, direction: int) -> Outputs:
        call = self.call
        dy = self.dy.chunk(2, 1)[direction] if call.halves else self.dy
        y, y_sum = self._views("y", direction, call.halves)
        flags = (call.scale, call.halves and direction == 1, not call.halves or direction == 1)
        return Outputs(
            y if self.has_y else None, y_sum, sequence_view(call.tensors.z), sequence_view(dy),
            *self._views("z", direction), *map(tl.constexpr, flags),
        )  # fmt: skip

    def _gradients(self, direction: int) -> Gradients:
        call, x = self.call, self.call.directions[direction]
        size, states = call.sizes, call.sizes.states
        has_B, has_C = (
            not modulation.CONSTANT.value and call.name_of(name, direction) in self.wanted
            for name, modulation in (("B", x.B), ("C", x.C))
        )
        columns = states * (1 + x.B.CONSTANT.value + x.C.CONSTANT.value) + 2
        over_sequences = self.dy.new_empty(
            (size.sequence_slices, size.groups * size.channels, columns), dtype=torch.float32
        )
        levels = ((has_B + has_C) * call.options.STATES.value - 1).bit_length()
        flags = (has_B, has_C, levels, False, True, False, True)
        return Gradients(
            *self._views(call.name_of("u", direction), direction),
            *self._views(call.name_of("delta", direction), direction),
            self._sums_over_channels((has_B + has_C) * states) if has_B or has_C else None,
            over_sequences,
            encoded(columns),
            *map(tl.constexpr, flags),
        )

    def _sums_over_channels(self, rows: int) -> Sums:
        """Memory for sums over channels, in the order in which programs write them."""
        size = self.call.sizes
        shape = (size.channel_slices, self.dy.shape[0], size.groups, rows, size.length, size.lanes)
        inner_last = (0, 1, 2, 3, 4, 5) if self.call.tiling.block_s > 1 else (0, 1, 5, 4, 2, 3)
        memory = torch.empty([shape[axis] for axis in inner_last], dtype=torch.float32, device=self.dy.device)
        data = memory.permute([inner_last.index(axis) for axis in range(6)])
        return Sums(data, *map(encoded, data.stride()))

    def _with_parts(self, to: Gradients, direction: int, launch: int) -> Gradients:
        """The place of this launch and direction in the sums that du and ddelta are."""
        flags = []
        for name in ("u", "delta"):
            part = self.call.part(direction, launch, self.call.is_shared(name))
            flags += [part.ADD, part.FINAL]
        return to._replace(DU_ADD=flags[0], DU_FINAL=flags[1], DDELTA_ADD=flags[2], DDELTA_FINAL=flags[3])

    def _add_up(self, direction: int, to: Gradients) -> None:
        """What several programs have summed up, to the gradients of parameters, B and C."""
        states, columns = self.call.sizes.states, to.over_sequences.sum(0)  # (channels, columns)
        x = self.call.directions[direction]
        self._add("A", direction, columns[:, :states])
        self._add("D", direction, columns[:, -2])
        self._add("delta_bias", direction, columns[:, -1])
        constants = [name for name, m in (("B", x.B), ("C", x.C)) if m.CONSTANT.value]
        for index, name in enumerate(constants):
            self._add(name, direction, columns[:, (index + 1) * states : (index + 2) * states])
        if to.over_channels is None:
            return
        rows = to.over_channels.data.sum(0)  # (batch, groups, rows, length, lanes)
        varying = [name for name, has in (("B", to.DB), ("C", to.DC)) if has.value]
        for index, name in enumerate(varying):
            self._add(name, direction, rows[:, :, index * states : (index + 1) * states])

    def _add(self, name: str, direction: int, part: Tensor) -> None:
        name = self.call.name_of(name, direction)
        if name not in self.wanted:
            return
        shape = self.wanted[name].shape
        if part.dim() == 5:  # groups of channels that share one of B or C
            own = shape[1] if len(shape) == self.dy.dim() + 1 else 1
            part = part.unflatten(1, (own, part.shape[1] // own)).sum(2)
        part = part.reshape(shape)
        self.sums[name] = self.sums[name] + part if name in self.sums else part
