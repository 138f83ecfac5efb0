"""The bidirectional scan in other ways: mathematics of its rivals, and the definition they are gated against.

Functions of named tensors of n sequences, (n, channels, length) unless stated, differentiable by autograd.
"""

from collections.abc import Callable
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import eager

SCANNED = ("u", "z", "delta", "B", "C", "delta_b", "B_b", "C_b")  # what is there for every time
REVERSED = ("delta_b", "B_b", "C_b")
RESET = 1e4  # softplus leaves it as it is, and exp(RESET A) is zero for every A of `scan_tensors`
FOLDED_ROWS = 16  # enough blocks, one per row and channel, to fill a GPU

Tensors = dict[str, Tensor]


def scan_tensors(sequences: int, channels: int, length: int, states: int, generator: torch.Generator) -> Tensors:
    """Inputs of a bidirectional scan in float32: u and z shared, the rest per direction, as in the paper's mixer. They
    lie where the generator does."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, device=generator.device)

    tensors = {"u": normal(sequences, channels, length), "z": normal(sequences, channels, length)}
    for suffix in ("", "_b"):
        tensors["delta" + suffix] = 0.5 * normal(sequences, channels, length)
        spread = torch.arange(1, states + 1, device=generator.device).sqrt()
        tensors["A" + suffix] = -torch.exp(0.5 * normal(channels, states)) * spread
        tensors["B" + suffix] = normal(sequences, states, length)
        tensors["C" + suffix] = normal(sequences, states, length)
        tensors["D" + suffix] = normal(channels)
        tensors["delta_bias" + suffix] = normal(channels) - 2.0
    return tensors


def turned(tensors: Tensors) -> Tensors:
    """With the reverse direction's own sequences the other way round in time."""
    return tensors | {name: tensors[name].flip(-1) for name in REVERSED}


def twice(tensors: Tensors, scan: Callable[..., Tensor] = eager.selective_scan) -> Tensor:
    """Two causal scans of which the second gets u and z flipped and has its output flipped back: three flips, as the
    published layer, which computes the second's delta, B and C from the flipped u."""
    u, z = tensors["u"], tensors["z"]
    y = scan(u, *(tensors[name] for name in ("delta", "A", "B", "C", "D")), z, tensors["delta_bias"], True)
    own = [tensors[name + "_b"] for name in ("delta", "A", "B", "C", "D")]
    return y + scan(u.flip(-1), *own, z.flip(-1), tensors["delta_bias_b"], True).flip(-1)


def eager_in_float32(u, *others) -> Tensor:
    """`eager.selective_scan` of sequences stored in any type, computed in float32, as mamba-ssm's reference does."""
    *tensors, delta_softplus = others
    return eager.selective_scan(u.float(), *(x.float() for x in tensors), delta_softplus).to(u.dtype)


def definition(tensors: Tensors) -> Tensor:
    """What our operator computes, whose reverse direction reads everything backwards."""
    return twice(turned(tensors))


def sweep(decay: Tensor, h: Tensor) -> None:
    """Inclusive scan h_t += decay_t h_{t-1} over axis 2, in place on both (Blelloch 1990): pairs are combined up a
    tree, then the partial results handed down. The length is a power of two."""
    levels = []
    while decay.shape[2] > 1:
        a, x = decay.unflatten(2, (-1, 2)), h.unflatten(2, (-1, 2))
        x[:, :, :, 1].addcmul_(a[:, :, :, 1], x[:, :, :, 0])
        a[:, :, :, 1].mul_(a[:, :, :, 0])
        levels.append((a, x))
        decay, h = a[:, :, :, 1], x[:, :, :, 1]
    for a, x in reversed(levels):
        x[:, :, 1:, 0].addcmul_(a[:, :, 1:, 0], x[:, :, :-1, 1])


class ParallelScan(torch.autograd.Function):
    """h_t = decay_t h_{t-1} + drive_t over axis 2 of (n, channels, length, states), parallel over time both ways."""

    @staticmethod
    def forward(ctx, decay: Tensor, drive: Tensor) -> Tensor:
        h = _swept(decay, drive)
        ctx.save_for_backward(decay, h)
        return h

    @staticmethod
    def backward(ctx, dh: Tensor) -> tuple[Tensor, Tensor]:
        decay, h = ctx.saved_tensors
        following = F.pad(decay[:, :, 1:], (0, 0, 0, 1))  # the adjoint runs back in time with the next step's decay
        ddrive = _swept(following.flip(2), dh.flip(2)).flip(2)
        ddecay = torch.zeros_like(decay)
        ddecay[:, :, 1:] = ddrive[:, :, 1:] * h[:, :, :-1]
        return ddecay, ddrive


def _swept(decay: Tensor, drive: Tensor) -> Tensor:
    length = drive.shape[2]
    missing = (1 << (length - 1).bit_length()) - length
    h = F.pad(drive, (0, 0, 0, missing)) if missing else drive.clone()
    sweep(F.pad(decay, (0, 0, 0, missing)) if missing else decay.clone(), h)
    return h[:, :, :length]


def pscan(u, delta, A, B, C, D, z, delta_bias, delta_softplus) -> Tensor:
    """Causal selective scan with the recurrence as a parallel scan; arguments as eager.selective_scan."""
    return parallel(ParallelScan.apply, u, delta, A, B, C, D, z, delta_bias, delta_softplus)


def parallel(recurrence: Callable[[Tensor, Tensor], Tensor], u, delta, A, B, C, D, z, delta_bias, delta_softplus):
    """Causal selective scan by `recurrence` of decay and drive, (n, channels, length, states) each, to h."""
    delta = delta + delta_bias[:, None]
    delta = F.softplus(delta) if delta_softplus else delta
    decay = torch.exp(delta[..., None] * A[:, None])  # (n, d, l, states)
    drive = (delta * u)[..., None] * B.transpose(1, 2)[:, None]
    y = torch.einsum("bdln,bnl->bdl", recurrence(decay, drive), C) + u * D[:, None]
    return y * F.silu(z)


def associative(*arguments) -> Tensor:
    """The same with torch's own prototype of a parallel scan, in its form for any device."""
    from torch._higher_order_ops.associative_scan import associative_scan

    return parallel(lambda *pair: associative_scan(_after, pair, dim=2, combine_mode="generic")[1], *arguments)


def _after(earlier: tuple[Tensor, Tensor], later: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
    """h -> a h + x, composed."""
    return earlier[0] * later[0], later[0] * earlier[1] + later[1]


def compiled(function: Callable[[Tensors], Tensor]) -> Callable[[Tensors], Tensor]:
    """torch.compile, whose backward may run more than once for one forward. For the CPU code without vectors: that with
    vectors of this loop over time is wrong by as much as the output is large (torch 2.13)."""
    import torch._functorch.config
    import torch._inductor.config

    def run(tensors: Tensors) -> Tensor:
        with (
            torch._functorch.config.patch(donated_buffer=False),
            torch._inductor.config.patch({"cpp.simdlen": 1, "compile_threads": 1}),
        ):  # no helper processes, which would outlive one that is killed
            return call(tensors)

    call = torch.compile(function, dynamic=False)
    return run


def compiled_once(tensors: Tensors) -> Tensor:
    """`twice` compiled for any number of sequences, so that a gate and a probe on a few compile nothing more."""
    for value in tensors.values():
        if value.dim() == 3:
            torch._dynamo.maybe_mark_dynamic(value, 0)
    return _compiled_twice()(tensors)


@cache
def _compiled_twice() -> Callable[[Tensors], Tensor]:
    return compiled(partial(twice, scan=eager_in_float32))


def reference(tensors: Tensors) -> Tensor:
    """Our own reference backend, in PyTorch."""
    from ssmvdm_kernels import bidirectional_selective_scan

    return bidirectional_selective_scan(**tensors, delta_softplus=True, backend="reference")


def fold(x: Tensor) -> Tensor:
    """(rows, c, sequences of a row, time) as (rows, c, all times of the row)."""
    return x.flatten(2)


def folded_tensors(sequences: int, channels: int, length: int, states: int, generator: torch.Generator) -> Tensors:
    """The sequences of `scan_tensors` end to end in rows, each followed by a reset token, at which delta is so
    large that nothing is left of the state, and all else zero. Each is (rows, c, sequences / rows, length + 1)."""
    rows = min(FOLDED_ROWS, sequences)
    if sequences % rows:
        raise ValueError(f"sequences: expected a multiple of {rows} to fold, got {sequences}")
    tensors = turned(scan_tensors(sequences, channels, length, states, generator))
    for name in SCANNED:
        value = RESET if name.startswith("delta") else 0.0
        padded = torch.nn.functional.pad(tensors[name], (0, 1), value=value)
        tensors[name] = padded.unflatten(0, (rows, -1)).transpose(1, 2).contiguous()
    return tensors


def folded(tensors: Tensors, scan: Callable[..., Tensor]) -> Tensor:
    """`twice` on the rows: each sequence is turned round where it lies, so that its reset token stays behind it."""
    shape = tensors["u"].shape
    u, z = tensors["u"], tensors["z"]
    y = scan(fold(u), *_own(tensors, ""), fold(z), tensors["delta_bias"], True)
    back = scan(fold(_Turn.apply(u)), *_own(tensors, "_b"), fold(_Turn.apply(z)), tensors["delta_bias_b"], True)
    return y.view(shape) + _Turn.apply(back.view(shape))


def _own(tensors: Tensors, suffix: str) -> list[Tensor]:
    return [fold(x) if x.dim() == 4 else x for x in (tensors[n + suffix] for n in ("delta", "A", "B", "C", "D"))]


class _Turn(torch.autograd.Function):
    """Sequences turned round and the reset token kept last: a roll of the flipped times. One gather, as a flip is, and
    its own derivative, where that of index_select would add to zeros."""

    @staticmethod
    def forward(ctx, x: Tensor) -> Tensor:
        order = torch.arange(x.shape[-1] - 1, -1, -1, device=x.device).roll(-1)
        return x.index_select(-1, order)

    @staticmethod
    def backward(ctx, dy: Tensor) -> Tensor:
        return _Turn.forward(ctx, dy)


def folded_truth(tensors: Tensors) -> Tensor:
    """Every sequence by itself, without the tokens."""
    rows = tensors["u"].shape[0]
    apart = {name: x[..., :-1].transpose(1, 2).flatten(0, 1) if name in SCANNED else x for name, x in tensors.items()}
    y = twice(apart)
    return torch.nn.functional.pad(y.unflatten(0, (rows, -1)).transpose(1, 2), (0, 1))


def few_folded(x: Tensor) -> Tensor:
    return x[:: max(1, x.shape[0] - 1), :, :: max(1, x.shape[2] - 1)]
