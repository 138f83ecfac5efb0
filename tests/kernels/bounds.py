"""Two computed bounds on a kernel's error. No tolerance here is typed by hand.

**(b) A priori.** The scan and its adjoint are walked in float64 with numbers that carry their rounding error
(rounding.py has the rule of each operation and the constants). For one direction, with u = 2^-24, D = |d A| and d
exact, that gives

    E_t = a E_{t-1} + u ((EXP + 2 + 3 D) a |h_{t-1}| + 3 |d u B|),     |err y_t| <= sum |C| E + (N + 2) u sum |C h|

which is inside the form with (6 + 4 D) and 7 that was calibrated on honest loops; the slack there is for the errors of
softplus and of the bias, which are carried in d here. The cast to a 16-bit output adds one unit of that dtype.

The backward follows the same rules through dh_t = g C_t + a_{t+1} dh_{t+1}, an error G_t = a G_{t+1} + ... of the same
form. Products a * dh * h_before are taken to be formed directly; a kernel that recovers a h_before as h - d u B loses
all digits at strong decay and is far outside. Sums over states, channels, lanes and time are bounded by the sum of
magnitudes, whatever their order. Where the exponent is kept as A log2 e, ddelta takes that factor out again with ln 2:
4 units more (`through_decay`).

**(a) Relative.** The same mathematics run eagerly in the storage dtype (truth.py in that dtype) has an error too.
Errors are divided by bound (b), so that rows, steps and states of different magnitude compare. For each way of cutting
the tensor (rows of (batch, channel), time steps, states), the worst slice may have at most twice the error of the eager
run's worst, plus one unit of the output's dtype, or of its terms if it is a sum. Approximate functions, which are those
of a GPU, lose up to EXP units where the eager run's lose one rounding: there the bound is EXP times as wide, and how
much of the narrow one is used is kept for a report.

An eager run may be exact by luck. So if a slice has more, the eager run is repeated REDRAWS times, and in a tensor of
few elements until there are SAMPLES of them, and its worst counts: on the same inputs in base two with subnormal
numbers flushed to zero, as kernels may compute it, then on inputs times a factor near one, both ways. Luck is also
taken out where one number is a sum over many sequences (dA, dD, ddelta_bias, constant B and C): the eager error is the
sum of the magnitudes of the errors of each sequence's share, summed step by step.
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch
from torch import Tensor

from . import truth
from .rounding import EXP, TINY, UNIT, Rounded, cat, stack, total

REDRAWS, SAMPLES = 7, 512
used_by_approximations: list[float] = []  # of the bound (a) that holds for exact functions


def compute_dtype(storage: torch.dtype) -> torch.dtype:
    """Backends compute in float32 whatever the storage type, in float64 for float64."""
    return torch.float64 if storage == torch.float64 else torch.float32


@dataclass(frozen=True)
class Walk:
    """One direction's forward pass with error bounds; axes as in truth.Trace."""

    p: truth.Direction
    d: Rounded
    slope: Rounded | None  # the derivative of softplus
    a: Rounded
    before: Rounded
    after: Rounded
    last: Rounded
    terms: list  # what y is the sum of, as arguments of `total`


def walk(p: truth.Direction, delta: Rounded) -> Walk:
    """The forward recurrence with its rounding errors; `delta` is delta + delta_bias."""
    number = delta.of
    d = delta.softplus() if p.softplus else delta
    a = (d[:, :, None] * number(p.A[:, :, None, None])).exp()
    inflow = (d * number(p.u))[:, :, None] * number(p.B)
    h = number(p.initial)
    before, after = [h] * p.u.shape[2], [h] * p.u.shape[2]
    for t in truth.times(p.u.shape[2], p.reverse):
        before[t] = h
        h = a[:, :, :, t] * h + inflow[:, :, :, t]
        after[t] = h
    stacked = stack(after, 3)
    skip = number(p.D[:, None, None].expand_as(p.u)) * number(p.u)
    return Walk(
        p=p,
        d=d,
        slope=delta.sigmoid() if p.softplus else None,
        a=a,
        before=stack(before, 3),
        after=stacked,
        last=h,
        terms=[(number(p.C) * stacked, (2,)), (skip, ())],
    )


def walk_back(w: Walk, g: Rounded, dlast: Tensor | None) -> dict[str, list]:
    """The adjoint recurrence with its rounding errors -> for each gradient what it is the sum of."""
    p, number = w.p, g.of
    s = number(torch.zeros_like(p.initial) if dlast is None else dlast)
    dh, carried = [s] * p.u.shape[2], [s] * p.u.shape[2]
    for t in truth.times(p.u.shape[2], not p.reverse):
        dh[t] = g[:, :, t, None] * number(p.C[:, :, :, t]) + s
        s = w.a[:, :, :, t] * dh[t]
        carried[t] = s
    dh, carried = stack(dh, 3), stack(carried, 3)
    d, u = w.d[:, :, None], number(p.u)[:, :, None]
    decay = carried * w.before
    through_decay = (decay * number(p.A[:, :, None, None])).loses(4)
    dd = total((through_decay, (2,)), (dh * number(p.B) * u, (2,)))
    dx = dd if w.slope is None else dd * w.slope
    skip = number(p.D[:, None, None].expand_as(p.u)) * g
    return {
        "u": [(dh * number(p.B) * d, (2,)), (skip, ())],
        "delta": [(dx, ())],
        "A": [(decay * d, (0, 3, 4))],
        "B": [(dh * (d * u), ())],
        "C": [(g[:, :, None] * w.after, ())],
        "D": [(g * number(p.u), (0, 2, 3))],
        "delta_bias": [(dx, (0, 2, 3))],
        "initial_state": [(s, ())],
    }


def over_copies(gradient: Rounded, like: Tensor, u: Tensor) -> tuple[Rounded, tuple[int, ...]]:
    """A gradient of expanded B or C as an argument of `total` that sums what truth.expand_states copied."""
    if like.dim() == 2:
        return gradient, (0, 3, 4)
    groups = 1 if like.dim() == u.dim() else like.shape[1]
    batch, channels, *rest = gradient.value.shape
    return gradient.map(lambda x: x.reshape(batch, groups, channels // groups, *rest)), (2,)


class Expected:
    """Every output and gradient of one call with its a priori bound, and the error of the eager run beside it.

    inputs: name -> tensor or None, as given to the kernel. `numbers` maps "y", "last_state" and, if `dy` is given, the
    names of the inputs to what must come out; `eager_error` maps the same names to the errors of the eager run.
    """

    def __init__(self, inputs: dict, options: truth.Options, dy: Tensor | None = None, dlast: Tensor | None = None):
        self.options = options
        self._call = (inputs, dy, dlast)
        self._redrawn: list[Expected] = []
        self.u_dims = inputs["u"].dim()
        storage = inputs["u"].dtype
        self.dtypes = {name: x.dtype for name, x in inputs.items() if x is not None}
        self.dtypes |= {"y": storage, "last_state": compute_dtype(storage)}
        # The truth is itself rounded, in float64: its unit is added to that of the kernel.
        self.unit = UNIT[compute_dtype(storage)] + UNIT[torch.float64]
        self.tiny = TINY[compute_dtype(storage)]
        found = self._bounded(*in_dtype(torch.float64, inputs, dy, dlast))
        self.numbers = {name: number.stored(self.dtypes[name]) for name, number in found.items()}
        self.eager_error = None if storage == torch.float64 else self._eager(storage, inputs, dy, dlast)

    def _number(self, value: Tensor) -> Rounded:
        return Rounded(value, torch.zeros_like(value), self.unit, self.tiny)

    def _bounded(self, inputs: dict, dy: Tensor | None, dlast: Tensor | None) -> dict[str, Rounded]:
        options, u = self.options, inputs["u"]
        both = options.direction == "both"
        walks = []
        for reverse in options.directions:
            bias = truth.of_direction(inputs, "delta_bias", reverse and both)[1]
            raw = truth.flatten_lanes(truth.of_direction(inputs, "delta", reverse and both)[1], 3)
            delta = self._number(raw)
            delta = delta if bias is None else delta + self._number(bias[:, None, None].expand_as(raw))
            walks.append(walk(truth.direction_of(inputs, options, reverse), delta))
        if both and options.merge == "cat":
            merged = cat([total(*w.terms) for w in walks], 1)
        else:
            merged = total(*(term for w in walks for term in w.terms)).scaled(self._share())
        z = truth.gate_of(inputs, options)
        gate = None if z is None else self._number(z)
        y = merged if gate is None else merged * (gate * gate.sigmoid())
        found = {"y": y, "last_state": walks[-1].last}
        found = {name: number.map(lambda x: x.reshape(*x.shape[:-1], *u.shape[3:])) for name, number in found.items()}
        if dy is not None:
            found |= self._gradients(inputs, walks, merged, gate, dy, dlast)
        return found

    def _share(self) -> float:
        return 0.5 if self.options.direction == "both" and self.options.merge == "mean" else 1.0

    def _gradients(self, inputs: dict, walks: list[Walk], merged: Rounded, gate, dy: Tensor, dlast) -> dict:
        channels = inputs["u"].shape[1]
        both = self.options.direction == "both"
        dy = self._number(truth.flatten_lanes(dy, 3))
        dlast = None if dlast is None else truth.flatten_lanes(dlast, 3)
        parts: dict[str, list] = {}
        if gate is not None:
            sigma, one = gate.sigmoid(), self._number(torch.ones_like(gate.value))
            dz = dy * merged * (sigma * (one + gate * (one + sigma.scaled(-1))))
            parts["z"] = [(dz[:, k : k + channels], ()) for k in range(0, dz.value.shape[1], channels)]
            dy = dy * (gate * sigma)
        for k, w in enumerate(walks):
            g = dy.scaled(self._share())
            if both and self.options.merge == "cat":
                g = dy[:, k * channels : (k + 1) * channels]
            for name, terms in walk_back(w, g, dlast if w is walks[-1] else None).items():
                key, tensor = truth.of_direction(inputs, name, w.p.reverse and both)
                if tensor is None:
                    continue
                if name in "BC":
                    terms = [over_copies(number, tensor, inputs["u"]) for number, _ in terms]
                parts.setdefault(key, []).extend(terms)
        return {key: total(*terms).map(lambda x, k=key: x.reshape(inputs[k].shape)) for key, terms in parts.items()}

    def _eager(self, storage: torch.dtype, inputs: dict, dy: Tensor | None, dlast: Tensor | None) -> dict[str, Tensor]:
        """Errors of the eager run in the storage dtype."""
        runs = []
        for dtype in (storage, torch.float64):
            torch.set_flush_denormal(self.options.base_two)
            cast, *grads = in_dtype(dtype, inputs, dy, dlast)
            y, last = truth.scan(cast, self.options)
            found = {"y": y, "last_state": last}
            if dy is not None:
                found |= truth.scan_adjoint(cast, self.options, *grads, reduce=per_sequence)
            torch.set_flush_denormal(False)
            runs.append(found)
        errors = {name: (value.double() - runs[1][name]).abs() for name, value in runs[0].items()}
        shapes = {name: number.value.shape for name, number in self.numbers.items()}
        return {name: error if error.shape == shapes[name] else error.sum((0, 1)) for name, error in errors.items()}

    def check(self, name: str, actual: Tensor, is_exact: bool | None = None) -> None:
        """Raise AssertionError, with the place and the size of the worst error, unless both bounds hold.

        is_exact: the functions it was computed with are no approximations; default: where it is on no GPU.
        """
        number, dtype = self.numbers[name], self.dtypes[name]
        expected_shape = tuple(number.value.shape)
        assert tuple(actual.shape) == expected_shape, f"{name}: shape {tuple(actual.shape)}, expected {expected_shape}"
        assert actual.dtype == dtype, f"{name}: {actual.dtype}, expected {dtype}"
        used = usage(actual, number, dtype)
        if used.numel() == 0:
            return
        place = torch.unravel_index(used.argmax(), used.shape)
        assert used[place] <= 1, (
            f"{name}{[int(i) for i in place]}: {actual[place].item():.9g}, truth {number.value[place].item():.9g}, "
            f"error {used[place].item():.3g} times the a priori bound {number.error[place].item():.3g}; "
            f"{int((used > 1).sum())} of {used.numel()} outside"
        )
        if self.eager_error is not None:
            self._check_relative(name, used, not actual.is_cuda if is_exact is None else is_exact)

    def rows(self, name: str, actual: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Errors of each (batch, channel) row of a sequence, by bound (b): this result's, the eager run's, one unit."""
        used = usage(actual, self.numbers[name], self.dtypes[name])
        return tuple(root_mean_square(x, (0, 1)) for x in (used, self.eager_usage(name), self.unit_usage(name)))

    def eager_usage(self, name: str) -> Tensor:
        """Errors of the eager run by bound (b)."""
        error = self.numbers[name].error
        return torch.where(error > 0, self.eager_error[name] / error, 0.0)

    def unit_usage(self, name: str) -> Tensor:
        """One unit of the output, or of the terms of a sum, by bound (b)."""
        number = self.numbers[name]
        step = torch.maximum(UNIT[self.dtypes[name]] * number.value.abs(), self.unit * number.spread())
        return torch.where(number.error > 0, step / number.error, 0.0)

    def redrawn(self, count: int) -> list[Expected]:
        """The eager run as kernels compute it, then on slightly other inputs; made when first needed."""
        inputs, dy, dlast = self._call

        def moved(x, generator):
            if x is None:
                return None
            factor = 0.9 + 0.2 * torch.rand((), generator=generator, dtype=torch.float64) if generator else 1.0
            return (x.detach().cpu().double() * factor).to(x.dtype)

        for seed in range(len(self._redrawn), count):
            generator = torch.Generator().manual_seed(seed) if seed else None
            values = {name: moved(x, generator) for name, x in inputs.items()}
            options = dataclasses.replace(self.options, base_two=seed % 2 == 0)
            self._redrawn.append(Expected(values, options, moved(dy, generator), moved(dlast, generator)))
        return self._redrawn[:count]

    def _check_relative(self, name: str, used: Tensor, is_exact: bool) -> None:
        """Bound (a)."""
        eager = self.eager_usage(name)
        if not torch.isfinite(eager).all():
            return  # the eager run left the range of the dtype
        step = self.unit_usage(name)
        count = max(REDRAWS, SAMPLES // used.numel())
        for label, keep in slices(name, used.dim(), self.u_dims).items():
            ours, theirs, unit = (root_mean_square(x, keep).max() for x in (used, eager, step))
            if ours > allowance(2 * theirs + unit, is_exact):
                draws = [root_mean_square(draw.eager_usage(name), keep).max() for draw in self.redrawn(count)]
                theirs = max(theirs, *draws)
            judge(
                f"{name}: the worst {label} has {ours:.3g} of the a priori bound; the worst of {1 + count} eager "
                f"runs {theirs:.3g}, one unit of the output {unit:.3g}",
                ours, 2 * theirs + unit, is_exact,
            )  # fmt: skip


def allowance(wanted: Tensor, is_exact: bool) -> Tensor:
    """Bound (a), given what it is with exact functions."""
    return wanted if is_exact else EXP * wanted


def judge(what: str, ours: Tensor, wanted: Tensor, is_exact: bool) -> None:
    """AssertionError beyond bound (a), whose use by approximate functions is noted."""
    if not is_exact and wanted > 0:
        used_by_approximations.append(float(ours / wanted))
    assert ours <= allowance(wanted, is_exact), what


def check_beside_eager(name: str, ours: Tensor, eager: list[Tensor], unit: Tensor, is_exact: bool) -> None:
    """Bound (a) for an operator whose eager runs are those of the reference backend, on the same and on other inputs.
    All are errors by bound (b), of a sequence tensor or a parameter: every (batch, channel), or channel, by itself."""
    keep = (0, 1) if ours.dim() > 2 else (0,)
    worst, allowed = (root_mean_square(x, keep).max() for x in (ours, unit))
    theirs = max(root_mean_square(x, keep).max() for x in eager)
    judge(
        f"{name}: the worst channel has {worst:.3g} of the a priori bound, that of {len(eager)} eager runs "
        f"{theirs:.3g}, one unit {allowed:.3g}",
        worst, 2 * theirs + allowed, is_exact,
    )  # fmt: skip


def in_dtype(dtype: torch.dtype, inputs: dict, *others: Tensor | None) -> tuple:
    """The same values on the CPU, detached and all in one dtype."""
    detached = {name: None if x is None else x.detach().to("cpu", dtype) for name, x in inputs.items()}
    return detached, *(None if x is None else x.detach().to("cpu", dtype) for x in others)


def per_sequence(x: Tensor, dims: tuple[int, ...]) -> Tensor:
    """Summed over time one step after the other, each sequence for itself: (batch, lanes, *what stays)."""
    batch, time, lanes = dims
    result = 0.0
    for step in x.unbind(time):
        result = result + step
    return result.movedim((batch, lanes - 1), (0, 1))


def usage(actual: Tensor, number: Rounded, dtype: torch.dtype) -> Tensor:
    """|actual - truth| / bound, elementwise; infinite where a finite value was wanted and is not there.

    Where the truth is beyond the dtype's range, only the infinity of its sign is right; where it is within its error
    of the end of the range, that infinity is right too.
    """
    actual = actual.detach().to("cpu", torch.float64)
    limit = torch.finfo(dtype).max
    distance = (actual - number.value).abs()
    ratio = torch.where(distance == 0, 0.0, distance / number.error)
    infinite = torch.isinf(actual) & (actual.sign() == number.value.sign())
    ratio = torch.where(number.magnitude() > limit, torch.where(infinite, 0.0, ratio), ratio)
    ratio = torch.where((number.value.abs() - number.error > limit) & ~infinite, torch.inf, ratio)
    return torch.where(torch.isnan(ratio), torch.inf, ratio)


def slices(name: str, dims: int, u_dims: int) -> dict[str, tuple[int, ...]]:
    """The ways to cut a tensor: label -> the axes that stay."""
    kind = name.removesuffix("_b")
    if kind in ("u", "delta", "z", "y"):
        return {"(batch, channel)": (0, 1), "time step": (2,)}
    if kind in ("last_state", "initial_state"):
        return {"(batch, channel)": (0, 1), "state": (2,)}
    if kind in ("B", "C") and dims > 2:
        time = 2 if dims == u_dims else 3
        return {"batch": (0,), "state": (time - 1,), "time step": (time,)}
    return {"channel": (0,), "state": (dims - 1,)}


def root_mean_square(x: Tensor, keep: tuple[int, ...]) -> Tensor:
    """Over all axes but those kept."""
    rest = tuple(dim for dim in range(x.dim()) if dim not in keep)
    return (x * x).mean(rest).sqrt() if rest else x
