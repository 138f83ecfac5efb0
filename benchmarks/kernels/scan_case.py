"""One case of the scan benchmark: our operator on tensors of a given shape, dtype and memory layout, and its gate."""

from collections.abc import Callable, Iterable
from functools import partial

import torch
from torch import Tensor

from benchmarks.kernels import rival_scans
from benchmarks.kernels.rivals import Rival, Tensors
from benchmarks.kernels.shapes import Shape
from benchmarks.measure.gate import EAGER_FACTOR, ROUNDING_UNITS, Check, Gate

GATED_SEQUENCES = 8
RIVAL_FACTOR = 16.0  # a rival has to be right, not as exact as we are
RIVAL_ROUNDINGS = 4
REPLAY_ROUNDINGS = 1024  # atomic sums over thousands of sequences are in another order each time
HALVES = (torch.bfloat16, torch.float16)
SEQUENCE_AXIS = {"video": 3, "channels-last": 0, "length-contiguous": 0}


def our_tensors(shape: Shape, dtype: torch.dtype, layout: str, device: str = "cpu") -> Tensors:
    """Leaf tensors of `rival_scans.scan_tensors`: sequences in `dtype` and `layout`, parameters in float32."""
    generator = torch.Generator(device).manual_seed(shape.length)
    made = rival_scans.scan_tensors(shape.sequences, shape.channels, shape.length, shape.states, generator)
    placed = {name: value if value.dim() < 3 else _lay_out(value.to(dtype), layout) for name, value in made.items()}
    return {name: value.requires_grad_() for name, value in placed.items()}


def _lay_out(x: Tensor, layout: str) -> Tensor:
    """(n, channels, length) as the layout's logical shape with the layout's strides."""
    if layout == "video":
        return x.permute(1, 2, 0).contiguous()[None]  # (1, channels, length, n)
    if layout == "channels-last":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    return x.contiguous()


def run_ours(tensors: Tensors, backend: str = "cpu") -> Tensor:
    """(u and z shared by the directions, all else separate) -> y like u. This backend, or an error."""
    from ssmvdm_kernels import bidirectional_selective_scan

    return bidirectional_selective_scan(**tensors, delta_softplus=True, backend=backend)


def gradients(run, tensors: Tensors, dy: Tensor) -> tuple[Tensor, dict[str, Tensor]]:
    """Forward and backward: (y, gradient of every tensor)."""
    y = run(tensors)
    return y.detach(), dict(zip(tensors, torch.autograd.grad(y, list(tensors.values()), dy), strict=True))


def like_output(y: Tensor, seed: int = 1) -> Tensor:
    """A random output gradient with y's dtype and strides."""
    generator = torch.Generator(y.device).manual_seed(seed)
    return torch.empty_like(y).copy_(torch.randn(y.shape, generator=generator, device=y.device))


def gate_ours(tensors: Tensors, layout: str, run: Callable[[Tensors], Tensor] = run_ours) -> Gate:
    """A few sequences, from the first to the last, of calls on all of the timed buffers, against float64: their output
    and gradients; then, with an output gradient that is zero elsewhere, the gradients of the parameters, which are the
    sums over these sequences, and that no other sequence has a gradient."""
    axis = SEQUENCE_AXIS[layout]
    with torch.no_grad():
        dy = like_output(run(tensors))
    count = dy.shape[axis]
    rows = torch.linspace(0, count - 1, min(GATED_SEQUENCES, count), device=dy.device).round().long()

    def few(x: Tensor) -> Tensor:
        return x if x.dim() < 3 else _as_sequences(x.detach().index_select(axis, rows), layout)

    truth, yardstick = _truth(rival_scans.definition, {k: few(v) for k, v in tensors.items()}, few(dy))
    y, grads = gradients(run, tensors, dy)
    measured = {"y": y} | {name: grads[name] for name, value in tensors.items() if value.dim() >= 3}
    checks = [_check(name, few(value), truth[name], yardstick[name], EAGER_FACTOR) for name, value in measured.items()]
    del y, grads, measured  # as large as all that is timed

    kept = dy.index_select(axis, rows)
    _, grads = gradients(run, tensors, dy.zero_().index_copy_(axis, rows, kept))
    for name, value in grads.items():
        label = name if value.dim() < 3 else f"{name}, no other sequences"
        checks.append(_check(label, few(value), truth[name], yardstick[name], EAGER_FACTOR))
    return Gate((*checks, _zero_elsewhere(grads.values(), few)))


def our_ends(name: str, x: Tensor, layout: str) -> Tensor:
    """The first and the last sequence, and a parameter's gradient as it is."""
    axis = SEQUENCE_AXIS[layout]
    return x if x.dim() < 3 else x[(slice(None),) * axis + (slice(None, None, max(1, x.shape[axis] - 1)),)]


def _as_sequences(x: Tensor, layout: str) -> Tensor:
    return x[0].permute(2, 0, 1) if layout == "video" else x


def _truth(definition: Callable[[Tensors], Tensor], tensors: Tensors, dy: Tensor) -> tuple[Tensors, Tensors]:
    """y and gradients by plain mathematics in float64 and, as yardstick, in float32."""
    results = []
    for dtype in (torch.float64, torch.float32):
        leaves = {name: value.detach().to(dtype).requires_grad_() for name, value in tensors.items()}
        y, grads = gradients(definition, leaves, dy.to(dtype))
        results.append({"y": y} | grads)
    return results[0], results[1]


def _zero_elsewhere(grads: Iterable[Tensor], few: Callable[[Tensor], Tensor]) -> Check:
    """That sequences whose output is not used have no gradients. few: those whose output is."""
    count = sum(int(torch.count_nonzero(x) - torch.count_nonzero(few(x))) for x in grads if x.dim() >= 3)
    return Check("gradients elsewhere that are not zero", float(count), 0.0)


def rival_ends(rival: Rival, name: str, x: Tensor) -> Tensor:
    """A rival's few sequences of its result "y" or of a tensor by that name, and a parameter as it is."""
    return rival.few(x) if name == "y" or name in rival.per_sequence else x


def gate_rival(rival: Rival, tensors: Tensors) -> Gate:
    """Two sequences, the first and the last, of a call on all of the timed buffers with an output gradient that is zero
    elsewhere, against the rival's own float64 truth of these two: output and every gradient."""
    few = partial(rival_ends, rival)
    y = rival.run(tensors)
    dy = torch.zeros_like(y)
    rival.few(dy).copy_(like_output(rival.few(y.detach())))
    grads = dict(zip(tensors, torch.autograd.grad(y, list(tensors.values()), dy), strict=True))
    cut = {name: few(name, value) for name, value in tensors.items()}
    truth, yardstick = _truth(rival.truth, cut, rival.few(dy))
    measured = {name: few(name, value) for name, value in ({"y": y.detach()} | grads).items()}
    checks = [_check(name, value, truth[name], yardstick[name], RIVAL_FACTOR) for name, value in measured.items()]
    return Gate((*checks, _zero_elsewhere([grads[name] for name in rival.per_sequence], rival.few)))


def gate_replay(called: Tensors, replayed: Tensors) -> Gate:
    """That a replayed graph has written what the call returned, but for rounding and the order of sums."""
    checks = []
    for name, value in called.items():
        stored = torch.finfo(value.dtype).eps if value.dtype in HALVES else 0.0
        bound = (REPLAY_ROUNDINGS * torch.finfo(torch.float32).eps + stored) * value.abs().max().item()
        checks.append(Check(f"{name}, replayed", _error(replayed[name], value), bound))
    return Gate(tuple(checks))


def _check(name: str, value: Tensor, truth: Tensor, yardstick: Tensor, factor: float) -> Check:
    """The largest error against factor x that of the eager float32 mathematics, plus rounding of float32 and of the
    type the value is stored in: once for ours, and for a rival, which rounds each direction, its output before the gate
    and their sum, RIVAL_ROUNDINGS times. Values near zero are judged on the scale of one, that of the inputs."""
    scale = max(truth.abs().max().item(), 1.0)
    stored = torch.finfo(value.dtype).eps if value.dtype in HALVES else 0.0
    eps = torch.finfo(torch.float32).eps
    bound = factor * (_error(yardstick, truth) + ROUNDING_UNITS / EAGER_FACTOR * eps * scale)
    bound += stored * scale * (RIVAL_ROUNDINGS if factor == RIVAL_FACTOR else 1)
    return Check(name, _error(value, truth), bound)


def _error(value: Tensor, truth: Tensor) -> float:
    return (value.double() - truth).abs().max().item()
