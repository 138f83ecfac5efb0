"""What the bidirectional scan is compared with, written here in plain torch, and the rivals on the CPU.

Each rival is a function of named tensors of n sequences, (n, channels, length) unless stated, differentiable by
autograd, and has a float64 truth of its own to be gated against.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cache, partial

import torch
import torch.nn.functional as F
from torch import Tensor

from benchmarks.measure import eager

S4D_STATES = 64  # as the paper's S4D layers are usually run; half as many complex modes
HEAD_WIDTH = 64

Tensors = dict[str, Tensor]


def first_two(x: Tensor) -> Tensor:
    return x[:2]


@dataclass(frozen=True)
class Rival:
    """name and label; make(case tensors or sizes) -> leaf tensors; run and truth: the same result, timed and plain.

    per_sequence: names of the tensors that belong to the sequences, which are stored in the dtype that is compared.
    few: such a tensor, or the result, cut down to a few sequences. is_optional: a torch may be unable to run it.
    bytes_per_element: peak working memory of forward and backward per (channel, time step) of a sequence, a rough upper
    estimate that keeps a measurement within the machine's memory.
    """

    name: str
    label: str
    make: Callable[[int, int, int, int, torch.Generator], Tensors]
    run: Callable[[Tensors], Tensor]
    truth: Callable[[Tensors], Tensor]
    per_sequence: tuple[str, ...]
    bytes_per_element: int
    few: Callable[[Tensor], Tensor] = first_two
    is_optional: bool = False


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


def eager_scan(tensors: Tensors, scan: Callable[..., Tensor] = eager.selective_scan) -> Tensor:
    """Two causal passes of `scan` with flips between, each gated, as the published layer runs mamba-ssm."""
    u, z = tensors["u"], tensors["z"]
    forward = [tensors[name] for name in ("delta", "A", "B", "C", "D")]
    delta, A, B, C, D = (tensors[name + "_b"] for name in ("delta", "A", "B", "C", "D"))
    y = scan(u, *forward, z, tensors["delta_bias"], True)
    reverse = scan(u.flip(-1), delta.flip(-1), A, B.flip(-1), C.flip(-1), D, z.flip(-1), tensors["delta_bias_b"], True)
    return y + reverse.flip(-1)


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
    """`eager_scan` compiled for any number of sequences, so that a gate and a probe on a few compile nothing more."""
    for value in tensors.values():
        if value.dim() == 3:
            torch._dynamo.maybe_mark_dynamic(value, 0)
    return _compiled_eager_scan()(tensors)


@cache
def _compiled_eager_scan() -> Callable[[Tensors], Tensor]:
    return compiled(eager_scan)


def reference(tensors: Tensors) -> Tensor:
    """Our own reference backend, in PyTorch."""
    from ssmvdm_kernels import bidirectional_selective_scan

    return bidirectional_selective_scan(**tensors, delta_softplus=True, backend="reference")


def s4d_tensors(sequences: int, channels: int, length: int, states: int, generator: torch.Generator) -> Tensors:
    """S4D layer of both directions: complex modes (channels, S4D_STATES / 2), one skip weight per direction."""

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    modes = S4D_STATES // 2
    tensors = {"u": normal(sequences, channels, length)}
    for suffix in ("", "_b"):
        tensors["log_dt" + suffix] = torch.empty(channels).uniform_(-6.9, -2.3, generator=generator)
        tensors["log_A_real" + suffix] = torch.full((channels, modes), 0.5).log()
        tensors["A_imag" + suffix] = (torch.pi * torch.arange(modes)).repeat(channels, 1)
        tensors["C" + suffix] = normal(channels, modes, 2)
        tensors["D" + suffix] = normal(channels)
    return tensors


def _s4d_terms(tensors: Tensors, suffix: str) -> tuple[Tensor, Tensor]:
    """Exponent dt A and coefficient 2 C (exp(dt A) - 1) / A of every mode, complex (channels, modes)."""
    A = torch.complex(-torch.exp(tensors["log_A_real" + suffix]), tensors["A_imag" + suffix])
    exponent = A * torch.exp(tensors["log_dt" + suffix])[:, None]
    return exponent, 2 * torch.view_as_complex(tensors["C" + suffix]) * (torch.exp(exponent) - 1) / A


def _s4d_kernel(tensors: Tensors, suffix: str, length: int) -> Tensor:
    """k_l = 2 Re sum_n C_n (exp(dt A_n) - 1) / A_n exp(dt A_n l): (channels, length)."""
    exponent, coefficient = _s4d_terms(tensors, suffix)
    powers = torch.exp(exponent[..., None] * torch.arange(length))
    return torch.einsum("dn,dnl->dl", coefficient, powers).real


def s4d_fft(tensors: Tensors) -> Tensor:
    """Both directions as one two-sided convolution by FFT of twice the length."""
    u = tensors["u"]
    length = u.shape[-1]
    ahead, back = (_s4d_kernel(tensors, suffix, length) for suffix in ("", "_b"))
    # Tap l of the reverse kernel acts on u_{t+l}, which a circular convolution of 2 length has at index 2 length - l.
    gap = torch.zeros_like(back[:, :1])
    kernel = torch.cat([ahead[:, :1] + back[:, :1], ahead[:, 1:], gap, back[:, 1:].flip(-1)], dim=-1)
    spectrum = torch.fft.rfft(u, n=2 * length) * torch.fft.rfft(kernel, n=2 * length)
    y = torch.fft.irfft(spectrum, n=2 * length)[..., :length]
    return y + (tensors["D"] + tensors["D_b"])[:, None] * u


def s4d_scan_tensors(sequences: int, channels: int, length: int, states: int, generator: torch.Generator) -> Tensors:
    """Those of the layer, channels-last."""
    tensors = s4d_tensors(sequences, channels, length, states, generator)
    return tensors | {"u": tensors["u"].transpose(1, 2).contiguous().transpose(1, 2)}


def s4d_scan(tensors: Tensors) -> Tensor:
    """The same layer by our recurrence, both directions in one call."""
    from ssmvdm_kernels import bidirectional_s4d_scan

    coefficients = {}
    for suffix in ("", "_b"):
        exponent, coefficient = _s4d_terms(tensors, suffix)
        coefficients |= {"decay" + suffix: torch.exp(exponent), "weight" + suffix: coefficient / 2}
    skips = {name: tensors[name] for name in ("D", "D_b")}
    return bidirectional_s4d_scan(tensors["u"], **coefficients, **skips, backend="cpu")


def s4d_matrix(tensors: Tensors) -> Tensor:
    """The same by the dense (length x length) matrix of the two kernels."""
    u = tensors["u"]
    time = torch.arange(u.shape[-1])
    lag = time[:, None] - time[None, :]
    kernels = [_s4d_kernel(tensors, suffix, len(time))[:, sign.clamp(min=0)] * (sign >= 0) for suffix, sign in
               (("", lag), ("_b", -lag))]  # fmt: skip
    return torch.einsum("dts,nds->ndt", sum(kernels), u) + (tensors["D"] + tensors["D_b"])[:, None] * u


def attention_tensors(heads: Callable[[int], tuple[int, int]]):
    """Maker of q, k, v (sequences, heads, length, width); heads: number and width for a channel count."""

    def make(sequences: int, channels: int, length: int, states: int, generator: torch.Generator) -> Tensors:
        number, width = heads(channels)
        shape = (sequences, number, length, width)
        return {name: torch.randn(shape, generator=generator, device=generator.device) for name in "qkv"}

    return make


def sdpa(tensors: Tensors) -> Tensor:
    return F.scaled_dot_product_attention(tensors["q"], tensors["k"], tensors["v"])


def softmax_attention(tensors: Tensors) -> Tensor:
    scores = tensors["q"] @ tensors["k"].transpose(-1, -2) * tensors["q"].shape[-1] ** -0.5
    return torch.softmax(scores, dim=-1) @ tensors["v"]


def leaves(rival: Rival, shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensors:
    """Fresh leaf tensors of a rival for a `scan_case.Shape`, always the same; sequences in `dtype`."""
    generator = torch.Generator(device).manual_seed(shape.length)
    made = rival.make(shape.sequences, shape.channels, shape.length, shape.states, generator)
    return {name: (value.to(dtype) if name in rival.per_sequence else value).requires_grad_()
            for name, value in made.items()}  # fmt: skip


_SCANNED = ("u", "z", "delta", "B", "C", "delta_b", "B_b", "C_b")
RIVALS = (
    Rival(
        "eager",
        "mamba-ssm's eager mathematics, twice with flips",
        scan_tensors,
        partial(eager_scan, scan=partial(eager.selective_scan, steps_of=eager.by_index)),
        eager_scan,
        _SCANNED,
        1024,
    ),
    Rival(
        "pscan",
        "parallel scan over time (Blelloch), twice with flips",
        scan_tensors,
        partial(eager_scan, scan=pscan),
        eager_scan,
        _SCANNED,
        1024,
    ),
    Rival(
        "reference",
        "our reference backend (PyTorch)",
        scan_tensors,
        reference,
        eager_scan,
        _SCANNED,
        1024,
    ),
    Rival(
        "associative",
        "torch's associative_scan, twice with flips",
        scan_tensors,
        partial(eager_scan, scan=associative),
        eager_scan,
        _SCANNED,
        2048,
        is_optional=True,
    ),
    Rival(
        "compiled",
        "torch.compile of the eager mathematics, scalar code, twice with flips",
        scan_tensors,
        compiled_once,
        eager_scan,
        _SCANNED,
        1024,
        is_optional=True,
    ),
    Rival(
        "s4d-fft",
        f"S4D, {S4D_STATES} states, two-sided FFT convolution",
        s4d_tensors,
        s4d_fft,
        s4d_matrix,
        ("u",),
        96,
    ),
    Rival(
        "s4d-scan",
        f"S4D, {S4D_STATES} states, by scan (ours)",
        s4d_scan_tensors,
        s4d_scan,
        s4d_matrix,
        ("u",),
        32,
    ),
    Rival(
        "sdpa-8x64",
        "SDPA, 8 heads of 64",
        attention_tensors(lambda channels: (8, HEAD_WIDTH)),
        sdpa,
        softmax_attention,
        ("q", "k", "v"),
        192,
    ),
    Rival(
        "sdpa-equal",
        "SDPA of equal width, heads of 64",
        attention_tensors(lambda channels: (max(1, channels // HEAD_WIDTH), HEAD_WIDTH)),
        sdpa,
        softmax_attention,
        ("q", "k", "v"),
        64,
    ),
)
