"""What the bidirectional scan is compared with on a GPU; the shared parts are in `rivals`."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from benchmarks.kernels import rivals
from benchmarks.kernels.rivals import Rival, Tensors
from benchmarks.measure import eager

REVERSED = ("delta_b", "B_b", "C_b")
RESET = 1e4  # softplus leaves it as it is, and exp(RESET A) is zero for every A of `rivals.scan_tensors`
FOLDED_ROWS = 16  # enough blocks, one per row and channel, to fill a GPU
SCANNED = ("u", "z", "delta", "B", "C", "delta_b", "B_b", "C_b")


def turned(tensors: Tensors) -> Tensors:
    """With the reverse direction's own sequences the other way round in time."""
    return tensors | {name: tensors[name].flip(-1) for name in REVERSED}


def twice(tensors: Tensors, scan: Callable[..., Tensor]) -> Tensor:
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


def twice_truth(tensors: Tensors) -> Tensor:
    return rivals.eager_scan(turned(tensors))


def fold(x: Tensor) -> Tensor:
    """(rows, c, sequences of a row, time) as (rows, c, all times of the row)."""
    return x.flatten(2)


def folded_tensors(sequences: int, channels: int, length: int, states: int, generator: torch.Generator) -> Tensors:
    """The sequences of `rivals.scan_tensors` end to end in rows, each followed by a reset token, at which delta is so
    large that nothing is left of the state, and all else zero. Each is (rows, c, sequences / rows, length + 1)."""
    rows = min(FOLDED_ROWS, sequences)
    if sequences % rows:
        raise ValueError(f"sequences: expected a multiple of {rows} to fold, got {sequences}")
    tensors = turned(rivals.scan_tensors(sequences, channels, length, states, generator))
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
    back = scan(fold(_turn(u)), *_own(tensors, "_b"), fold(_turn(z)), tensors["delta_bias_b"], True)
    return y.view(shape) + _turn(back.view(shape))


def _own(tensors: Tensors, suffix: str) -> list[Tensor]:
    return [fold(x) if x.dim() == 4 else x for x in (tensors[n + suffix] for n in ("delta", "A", "B", "C", "D"))]


def _turn(x: Tensor) -> Tensor:
    """Sequences turned round and the reset token kept last: a roll of the flipped times. One gather, as a flip is."""
    order = torch.arange(x.shape[-1] - 1, -1, -1, device=x.device).roll(-1)
    return x.index_select(-1, order)


def folded_truth(tensors: Tensors) -> Tensor:
    """Every sequence by itself, without the tokens."""
    rows = tensors["u"].shape[0]
    apart = {name: x[..., :-1].transpose(1, 2).flatten(0, 1) if name in SCANNED else x for name, x in tensors.items()}
    y = twice_truth(apart)
    return torch.nn.functional.pad(y.unflatten(0, (rows, -1)).transpose(1, 2), (0, 1))


def few_folded(x: Tensor) -> Tensor:
    return x[:2, :, :2]


def equal_heads(channels: int) -> tuple[int, int]:
    """Number and width of heads that together have so many channels, at most 64 wide where that divides."""
    number = next(n for n in range(-(-channels // rivals.HEAD_WIDTH), channels + 1) if channels % n == 0)
    return number, channels // number


def attention(name: str, label: str, heads: Callable[[int], tuple[int, int]], bytes_per_element: int) -> Rival:
    make = rivals.attention_tensors(heads)
    return Rival(name, label, make, rivals.sdpa, rivals.softmax_attention, ("q", "k", "v"), bytes_per_element)


def all_rivals(mamba_scan: Callable[..., Tensor] | None) -> list[Rival]:
    """In the order in which they are measured; mamba-ssm's only where its scan is given."""
    found = []
    if mamba_scan is not None:
        found += [
            Rival("mamba-ssm", "mamba-ssm's kernels, twice with flips", rivals.scan_tensors,
                  partial(twice, scan=mamba_scan), twice_truth, SCANNED, 64),
            Rival("mamba-ssm-folded", "mamba-ssm's kernels, sequences folded with reset tokens", folded_tensors,
                  partial(folded, scan=mamba_scan), folded_truth, SCANNED, 64, few_folded),
        ]  # fmt: skip
    return [
        *found,
        attention("sdpa-8x64", "SDPA, 8 heads of 64", lambda channels: (8, rivals.HEAD_WIDTH), 96),
        attention("sdpa-equal", "SDPA of equal width", equal_heads, 48),
        Rival("compiled", "torch.compile of the eager loop, twice with flips", rivals.scan_tensors,
              rivals.compiled(partial(twice, scan=eager_in_float32)), twice_truth, SCANNED, 768),
    ]  # fmt: skip
