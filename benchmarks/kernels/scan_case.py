"""One case of the scan benchmark: our operator on tensors of a given shape, dtype and memory layout, and its gate."""

from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.kernels import rival_scans
from benchmarks.kernels.rivals import Rival, Tensors
from benchmarks.kernels.shapes import Shape
from benchmarks.measure.gate import EAGER_FACTOR, ROUNDING_UNITS, Check, Gate

GATED_SEQUENCES = 8
RIVAL_FACTOR = 16.0  # a rival has to be right, not as exact as we are
RIVAL_ROUNDINGS = 4
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
    """The first and the last sequences of the timed buffers against float64; then all gradients, those of the
    parameters too, of the first sequences alone (a view of the same buffers)."""
    axis = SEQUENCE_AXIS[layout]
    with torch.no_grad():
        dy = like_output(run(tensors))
    y, grads = gradients(run, tensors, dy)
    count = y.shape[axis]
    half = min(GATED_SEQUENCES, count) // 2 or 1
    rows = torch.cat([torch.arange(half), torch.arange(count - half, count)]).to(y.device)

    def few(x: Tensor, index: Tensor) -> Tensor:
        return x if x.dim() < 3 else _as_sequences(x.detach().index_select(axis, index), layout)

    checks = []
    truth, yardstick = _truth({k: few(v, rows) for k, v in tensors.items()}, few(dy, rows))
    measured = {"y": y} | {name: grads[name] for name, value in tensors.items() if value.dim() >= 3}
    for name, value in measured.items():
        checks.append(_check(name, few(value, rows), truth[name], yardstick[name], EAGER_FACTOR))

    first = {k: (v if v.dim() < 3 else v.narrow(axis, 0, 2 * half if count > 1 else 1)).detach().requires_grad_()
             for k, v in tensors.items()}  # fmt: skip
    part = first["u"].shape[axis]
    _, grads = gradients(run, first, dy.narrow(axis, 0, part))
    index = torch.arange(part, device=y.device)
    truth, yardstick = _truth({k: few(v, index) for k, v in first.items()}, few(dy, index))
    for name, value in grads.items():
        checks.append(_check(f"{name}, few sequences", few(value, index), truth[name], yardstick[name], EAGER_FACTOR))
    return Gate(tuple(checks))


def _as_sequences(x: Tensor, layout: str) -> Tensor:
    return x[0].permute(2, 0, 1) if layout == "video" else x


def _truth(tensors: Tensors, dy: Tensor) -> tuple[Tensors, Tensors]:
    """y and gradients by the eager mathematics in float64 and, as yardstick, in float32."""
    results = []
    for dtype in (torch.float64, torch.float32):
        leaves = {name: value.detach().to(dtype).requires_grad_() for name, value in tensors.items()}
        y, grads = gradients(rival_scans.definition, leaves, dy.to(dtype))
        results.append({"y": y} | grads)
    return results[0], results[1]


def gate_rival(rival: Rival, tensors: Tensors) -> Gate:
    """Output and gradients on the first sequences of the timed buffers against the rival's own float64 truth."""
    few = {name: rival.few(value) if name in rival.per_sequence else value for name, value in tensors.items()}
    few = {name: value.detach().requires_grad_() for name, value in few.items()}
    with torch.no_grad():
        dy = like_output(rival.run(few))
        full = rival.few(rival.run(tensors))
    y, grads = gradients(rival.run, few, dy)
    results = []
    for dtype in (torch.float64, torch.float32):
        leaves = {name: value.detach().to(dtype).requires_grad_() for name, value in few.items()}
        results.append(gradients(rival.truth, leaves, dy.to(dtype)))
    (truth, truth_grads), (yardstick, yardstick_grads) = results
    checks = [_check("output", full, truth, yardstick, RIVAL_FACTOR), _check("y", y, truth, yardstick, RIVAL_FACTOR)]
    for name, value in grads.items():
        checks.append(_check(name, value, truth_grads[name], yardstick_grads[name], RIVAL_FACTOR))
    return Gate(tuple(checks))


def _check(name: str, value: Tensor, truth: Tensor, yardstick: Tensor, factor: float) -> Check:
    """The largest error against factor x that of the eager float32 mathematics, plus rounding of float32 and of the
    type the value is stored in: once for ours, and for a rival, which rounds each direction, its output before the gate
    and their sum, RIVAL_ROUNDINGS times. Values near zero are judged on the scale of one, that of the inputs."""
    scale = max(truth.abs().max().item(), 1.0)
    stored = torch.finfo(value.dtype).eps if value.dtype in (torch.bfloat16, torch.float16) else 0.0
    eps = torch.finfo(torch.float32).eps
    bound = factor * (_error(yardstick, truth) + ROUNDING_UNITS / EAGER_FACTOR * eps * scale)
    bound += stored * scale * (RIVAL_ROUNDINGS if factor == RIVAL_FACTOR else 1)
    return Check(name, _error(value, truth), bound)


def _error(value: Tensor, truth: Tensor) -> float:
    return (value.double() - truth).abs().max().item()
