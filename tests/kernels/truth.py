"""Float64 truth of the selective scan, written for obviousness and independent of ssmvdm_kernels.

Three derivations of the same mathematics, in torch so that autograd can check them:

* `scan` and `scan_adjoint`: a loop over time and the adjoint recurrence, written by hand;
* `TruthScan`: the two as one autograd function, so that gradcheck and gradgradcheck test the adjoint itself;
* `dense_scan`: no recurrence at all, y = M u with M the (length x length) matrix of all pairs of times.

Forward, for one direction with t running in that direction (everything stays in natural time order):

    x_t = delta_t + delta_bias            d_t = softplus(x_t) or x_t
    h_t = exp(d_t A) h_{t-1} + d_t u_t B_t
    y_t = <C_t, h_t> + D u_t              merged over directions, then multiplied by silu(z)

The same functions run in any dtype: in float64 they are the truth, in the storage dtype they are the eager
implementation that bound (a) of bounds.py compares with.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

NAMES = (
    "u", "delta", "A", "B", "C", "D", "z", "delta_bias",
    "u_b", "delta_b", "A_b", "B_b", "C_b", "D_b", "delta_bias_b", "initial_state",
)  # fmt: skip
LOG2_E = math.log2(math.e)
REVERSE_NAMES = {
    "u": "u_b",
    "delta": "delta_b",
    "A": "A_b",
    "B": "B_b",
    "C": "C_b",
    "D": "D_b",
    "delta_bias": "delta_bias_b",
}


@dataclass(frozen=True)
class Options:
    """What is computed. direction: forward | reverse | both; merge: sum | mean | cat, used with both only.

    base_two is how, not what: exp(d A) as exp2(d (A log2 e)) and states added one after the other, as kernels do it.
    """

    direction: str = "both"
    merge: str = "sum"
    softplus: bool = False
    base_two: bool = False

    @property
    def directions(self) -> tuple[bool, ...]:
        """One entry per direction: is it the reverse one?"""
        return {"forward": (False,), "reverse": (True,), "both": (False, True)}[self.direction]


@dataclass(frozen=True)
class Direction:
    """One direction's tensors with lanes flattened to one axis and B, C expanded to one copy per channel."""

    u: Tensor  # (batch, channels, length, lanes)
    x: Tensor  # (batch, channels, length, lanes)   delta + delta_bias
    A: Tensor  # (channels, states)
    B: Tensor  # (batch, channels, states, length, lanes)
    C: Tensor  # (batch, channels, states, length, lanes)
    D: Tensor  # (channels,)
    initial: Tensor  # (batch, channels, states, lanes)
    reverse: bool
    softplus: bool
    base_two: bool


@dataclass(frozen=True)
class Trace:
    """What the forward loop saw; time is axis 3, in natural order."""

    d: Tensor  # (batch, channels, length, lanes)
    a: Tensor  # (batch, channels, states, length, lanes)   exp(d A)
    before: Tensor  # (batch, channels, states, length, lanes)   the state that step t starts from
    after: Tensor  # (batch, channels, states, length, lanes)   the state that step t leaves
    y: Tensor  # (batch, channels, length, lanes)   before merge and gate
    last: Tensor  # (batch, channels, states, lanes)


def flatten_lanes(x: Tensor, leading: int) -> Tensor:
    """Every axis after the first `leading` becomes one; none becomes one of size 1."""
    lanes = 1
    for size in x.shape[leading:]:
        lanes *= size
    return x.reshape(*x.shape[:leading], lanes)


def expand_states(x: Tensor, u: Tensor) -> Tensor:
    """B or C in any of its three forms -> (batch, channels, states, length, lanes), one copy per channel."""
    batch, channels, length = u.shape[:3]
    if x.dim() == 2:
        lanes = flatten_lanes(u, 3).shape[-1]
        return x[None, :, :, None, None].expand(batch, channels, x.shape[1], length, lanes)
    if x.dim() == u.dim():
        x = x.unsqueeze(1)
    x = flatten_lanes(x, 4)  # (batch, groups, states, length, lanes)
    return x.repeat_interleave(channels // x.shape[1], dim=1)


def sum_over(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """The reduction over (batch, time, lanes) behind the gradient of a parameter."""
    return x.sum(dims)


def reduce_states(gradient: Tensor, like: Tensor, u: Tensor, reduce=sum_over) -> Tensor:
    """The adjoint of `expand_states`: sum what was copied."""
    if like.dim() == 2:
        return reduce(gradient, (0, 3, 4))
    batch, channels, states, length, lanes = gradient.shape
    groups = 1 if like.dim() == u.dim() else like.shape[1]
    return gradient.reshape(batch, groups, channels // groups, states, length, lanes).sum(2).reshape(like.shape)


def of_direction(inputs: dict, name: str, reverse: bool) -> tuple[str, Tensor | None]:
    """The name and the tensor that this direction uses: the *_b one in reverse where it is given."""
    other = REVERSE_NAMES.get(name)
    if reverse and other and inputs.get(other) is not None:
        return other, inputs[other]
    return name, inputs.get(name)


def direction_of(inputs: dict, options: Options, reverse: bool) -> Direction:
    """Collect one direction's tensors."""
    both = options.direction == "both"

    def get(name):
        return of_direction(inputs, name, reverse and both)[1]

    u, delta, A = get("u"), get("delta"), get("A")
    batch, channels = u.shape[:2]
    flat_u = flatten_lanes(u, 3)
    D, bias, initial = get("D"), get("delta_bias"), inputs.get("initial_state")
    x = flatten_lanes(delta, 3)
    if bias is not None:
        x = x + bias[:, None, None]
    return Direction(
        u=flat_u,
        x=x,
        A=A,
        B=expand_states(get("B"), u),
        C=expand_states(get("C"), u),
        D=flat_u.new_zeros(channels) if D is None else D,
        initial=flat_u.new_zeros(batch, channels, A.shape[1], flat_u.shape[-1])
        if initial is None
        else flatten_lanes(initial, 3),
        reverse=reverse,
        softplus=options.softplus,
        base_two=options.base_two,
    )


def softplus(x: Tensor) -> Tensor:
    """log(1 + exp(x)) without a switch-over point."""
    return x.clamp(min=0) + torch.log1p(torch.exp(-x.abs()))


def over_states(x: Tensor, p: Direction) -> Tensor:
    """Sum (batch, channels, states, ...) over states."""
    return functools.reduce(torch.add, x.unbind(2)) if p.base_two else x.sum(2)


def times(length: int, reverse: bool) -> range:
    """The steps of one direction, in the order in which it takes them."""
    return range(length - 1, -1, -1) if reverse else range(length)


def run(p: Direction) -> Trace:
    """The recurrence, one step after the other."""
    d = softplus(p.x) if p.softplus else p.x
    if p.base_two:
        a = torch.exp2(d[:, :, None] * (p.A * LOG2_E)[:, :, None, None])
    else:
        a = torch.exp(d[:, :, None] * p.A[:, :, None, None])
    inflow = (d * p.u)[:, :, None] * p.B
    h = p.initial
    before, after = [h] * d.shape[2], [h] * d.shape[2]
    for t in times(d.shape[2], p.reverse):
        before[t] = h
        h = a[:, :, :, t] * h + inflow[:, :, :, t]
        after[t] = h
    stacked = torch.stack(after, 3)
    y = over_states(p.C * stacked, p) + p.D[:, None, None] * p.u
    return Trace(d=d, a=a, before=torch.stack(before, 3), after=stacked, y=y, last=h)


def run_adjoint(p: Direction, trace: Trace, dy: Tensor, dlast: Tensor | None, reduce=sum_over) -> dict[str, Tensor]:
    """Gradients of one direction; those of B and C still with one copy per channel.

    dy: (batch, channels, length, lanes), the gradient of `trace.y`. dlast: (batch, channels, states, lanes) or None.
    With s_t the gradient that reaches h_t from later steps: dh_t = dy_t C_t + s_t and s_{t-1} = a_t dh_t.
    """
    s = torch.zeros_like(p.initial) if dlast is None else dlast
    dh, carried = [s] * dy.shape[2], [s] * dy.shape[2]
    for t in times(dy.shape[2], not p.reverse):
        dh[t] = dy[:, :, t, None] * p.C[:, :, :, t] + s
        s = trace.a[:, :, :, t] * dh[t]
        carried[t] = s
    dh, carried = torch.stack(dh, 3), torch.stack(carried, 3)
    d, u = trace.d[:, :, None], p.u[:, :, None]
    if p.base_two:
        through_decay = over_states(carried * trace.before * (p.A * LOG2_E)[:, :, None, None], p) * (1 / LOG2_E)
    else:
        through_decay = over_states(carried * trace.before * p.A[:, :, None, None], p)
    dd = through_decay + over_states(dh * p.B, p) * p.u
    dx = dd * torch.sigmoid(p.x) if p.softplus else dd
    return {
        "u": over_states(dh * p.B, p) * trace.d + p.D[:, None, None] * dy,
        "delta": dx,
        "A": reduce(carried * trace.before * d, (0, 3, 4)),
        "B": dh * d * u,
        "C": dy[:, :, None] * trace.after,
        "D": reduce(dy * p.u, (0, 2, 3)),
        "delta_bias": reduce(dx, (0, 2, 3)),
        "initial_state": s,
    }


def merged(ys: list[Tensor], options: Options) -> Tensor:
    """Put the directions together: (batch, channels or 2 channels, length, lanes)."""
    if len(ys) == 1:
        return ys[0]
    if options.merge == "cat":
        return torch.cat(ys, 1)
    return (ys[0] + ys[1]) * (0.5 if options.merge == "mean" else 1.0)


def unmerged(dy: Tensor, options: Options) -> list[Tensor]:
    """The adjoint of `merged`: one gradient per direction."""
    if options.direction != "both":
        return [dy]
    if options.merge == "cat":
        return list(dy.chunk(2, 1))
    half = dy * (0.5 if options.merge == "mean" else 1.0)
    return [half, half]


def gate_of(inputs: dict, options: Options) -> Tensor | None:
    """z with lanes flattened, repeated for both halves of a concatenation."""
    if inputs.get("z") is None:
        return None
    z = flatten_lanes(inputs["z"], 3)
    return torch.cat([z, z], 1) if options.direction == "both" and options.merge == "cat" else z


def scan(inputs: dict, options: Options) -> tuple[Tensor, Tensor]:
    """-> y (batch, channels or 2 channels, length, *lanes), last state of the last direction run."""
    u = inputs["u"]
    traces = [run(direction_of(inputs, options, reverse)) for reverse in options.directions]
    y = merged([trace.y for trace in traces], options)
    z = gate_of(inputs, options)
    if z is not None:
        y = y * (z * torch.sigmoid(z))
    lanes = u.shape[3:]
    return y.reshape(y.shape[0], y.shape[1], u.shape[2], *lanes), traces[-1].last.reshape(
        *u.shape[:2], inputs["A"].shape[1], *lanes
    )


def scan_adjoint(
    inputs: dict, options: Options, dy: Tensor, dlast: Tensor | None = None, reduce=sum_over
) -> dict[str, Tensor]:
    """Gradients of sum(y * dy) + sum(last * dlast) for every input that is given, shaped as the inputs are.

    `reduce` sums over (batch, time, lanes) for A, D, delta_bias and constant B and C.
    """
    parts = [direction_of(inputs, options, reverse) for reverse in options.directions]
    traces = [run(p) for p in parts]
    dy = flatten_lanes(dy, 3)
    dlast = None if dlast is None else flatten_lanes(dlast, 3)
    gradients: dict[str, Tensor] = {}
    z = gate_of(inputs, options)
    if z is not None:
        sigma = torch.sigmoid(z)
        dz = dy * merged([trace.y for trace in traces], options) * (sigma * (1 + z * (1 - sigma)))
        if dz.shape[1] != inputs["z"].shape[1]:
            dz = dz.chunk(2, 1)[0] + dz.chunk(2, 1)[1]
        gradients["z"] = dz.reshape(inputs["z"].shape)
        dy = dy * (z * sigma)
    for p, trace, g in zip(parts, traces, unmerged(dy, options), strict=True):
        found = run_adjoint(p, trace, g, dlast if p is parts[-1] else None, reduce)
        for name in (*REVERSE_NAMES, "initial_state"):
            key, tensor = of_direction(inputs, name, p.reverse and options.direction == "both")
            if tensor is None:
                continue
            value = found[name]
            if name in ("B", "C"):
                value = reduce_states(value, tensor, inputs["u"], reduce)
            elif name in ("u", "delta", "initial_state"):
                value = value.reshape(tensor.shape)
            gradients[key] = gradients[key] + value if key in gradients else value
    return gradients


class TruthScan(torch.autograd.Function):
    """`scan` with `scan_adjoint` as its backward, itself differentiable: what gradcheck and gradgradcheck look at."""

    @staticmethod
    def forward(ctx, options, *tensors):
        ctx.options = options
        ctx.save_for_backward(*tensors)
        return scan(dict(zip(NAMES, tensors, strict=True)), options)

    @staticmethod
    def backward(ctx, dy, dlast):
        inputs = dict(zip(NAMES, ctx.saved_tensors, strict=True))
        gradients = scan_adjoint(inputs, ctx.options, dy, dlast)
        return None, *(gradients.get(name) for name in NAMES)


def dense_direction(p: Direction) -> tuple[Tensor, Tensor]:
    """One direction as a sum over all pairs of times, without a recurrence.

    h_t = sum_s exp(A (S_t - S_s)) d_s u_s B_s + exp(A S_t) h_0, S the running sum of d in the direction of travel
    and s not after t in that direction.
    """
    d = softplus(p.x) if p.softplus else p.x
    S = d.flip(2).cumsum(2).flip(2) if p.reverse else d.cumsum(2)  # (b, c, l, s)
    gap = S[:, :, :, None] - S[:, :, None, :]  # (b, c, t, s, lanes)
    length = d.shape[2]
    index = torch.arange(length)
    past = index[:, None] <= index[None, :] if p.reverse else index[:, None] >= index[None, :]
    past = past[:, :, None]  # (t, s, 1)
    exponent = p.A[:, :, None, None, None] * torch.where(past, gap, 0.0)[:, :, None]  # (b, c, n, t, s, lanes)
    decay = torch.where(past, torch.exp(exponent), 0.0)
    h = torch.einsum("bcntsl,bcnsl->bcntl", decay, (d * p.u)[:, :, None] * p.B)
    h = h + torch.exp(p.A[:, :, None, None] * S[:, :, None]) * p.initial[:, :, :, None]
    y = torch.einsum("bcntl,bcntl->bctl", p.C, h) + p.D[:, None, None] * p.u
    return y, h[:, :, :, 0 if p.reverse else length - 1]


def dense_scan(inputs: dict, options: Options) -> tuple[Tensor, Tensor]:
    """`scan` by the dense form; gradients come from autograd. O(length^2) memory."""
    found = [dense_direction(direction_of(inputs, options, reverse)) for reverse in options.directions]
    y = merged([part[0] for part in found], options)
    z = gate_of(inputs, options)
    if z is not None:
        y = y * torch.nn.functional.silu(z)
    u = inputs["u"]
    return y.reshape(y.shape[0], y.shape[1], *u.shape[2:]), found[-1][1].reshape(
        *u.shape[:2], inputs["A"].shape[1], *u.shape[3:]
    )


def conv(x: Tensor, weight: Tensor, bias: Tensor | None, anticausal: bool, silu: bool) -> Tensor:
    """Depthwise causal or anti-causal convolution, one tap after the other; x (batch, channels, length, *lanes).

    Causal: y[t] = act(bias + sum_k weight[k] x[t - (width - 1) + k]); anti-causal: x[t + (width - 1) - k].
    """
    length, width = x.shape[2], weight.shape[1]
    shape = (1, -1, *[1] * (x.dim() - 2))
    y = torch.zeros_like(x) if bias is None else torch.zeros_like(x) + bias.reshape(shape)
    for k in range(width):
        shift = width - 1 - k
        if shift >= length:
            continue
        piece = x[:, :, shift:] if anticausal else x[:, :, : length - shift]
        pad = torch.zeros_like(x[:, :, :shift])
        moved = torch.cat([piece, pad] if anticausal else [pad, piece], 2)
        y = y + weight[:, k].reshape(shape) * moved
    return y * torch.sigmoid(y) if silu else y
