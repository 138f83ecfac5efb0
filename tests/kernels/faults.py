"""Planted errors: results of an honest float32 run, spoilt the way real kernels have been. The bounds must see each.

A fault is a function (inputs, options, dy) -> {name: tensor}: the outputs and gradients that the faulty kernel gives.
"""

from __future__ import annotations

import contextlib
import dataclasses

import torch
from torch import Tensor

from . import truth
from .truth import Options

FAULTS = {}


def fault(function):
    FAULTS[function.__name__.replace("_", " ")] = function
    return function


def honest(inputs: dict, options: Options, dy: Tensor, kernel_dy: Tensor | None = None) -> dict[str, Tensor]:
    """Outputs and gradients in float32 arithmetic, stored in the dtypes of the inputs."""
    wide = {name: None if x is None else x.float() for name, x in inputs.items()}
    y, _ = truth.scan(wide, options)
    found = {"y": y.to(inputs["u"].dtype)}
    gradients = truth.scan_adjoint(wide, options, (dy if kernel_dy is None else kernel_dy).float())
    return found | {name: g.to(inputs[name].dtype) for name, g in gradients.items()}


@contextlib.contextmanager
def replaced(name: str, function):
    """A function of truth.py replaced for a while."""
    original = getattr(truth, name)
    setattr(truth, name, function)
    try:
        yield original
    finally:
        setattr(truth, name, original)


def one_direction(inputs: dict, options: Options, dy: Tensor, reverse: bool) -> dict[str, Tensor]:
    """What one direction of the sum contributes by itself."""
    own = {name: truth.of_direction(inputs, name, reverse)[1] for name in truth.NAMES if not name.endswith("_b")}
    return honest(own, dataclasses.replace(options, direction="reverse" if reverse else "forward"), dy)


@fault
def dz_of_the_reverse_direction_lost(inputs, options, dy):
    return honest(inputs, options, dy) | {"z": one_direction(inputs, options, dy, False)["z"]}


@fault
def reverse_direction_is_off_by_one(inputs, options, dy):
    def late(p):
        trace = original(p)
        if not p.reverse:
            return trace
        y = (p.C * trace.before).sum(2) + p.D[:, None, None] * p.u
        return dataclasses.replace(trace, y=y, after=trace.before)

    with replaced("run", late) as original:
        return honest(inputs, options, dy)


@fault
def B_and_C_exchanged(inputs, options, dy):
    found = honest(inputs | {"B": inputs["C"], "C": inputs["B"]}, options, dy)
    return found | {"B": found["C"], "C": found["B"]}


@fault
def states_and_channels_of_A_transposed(inputs, options, dy):
    A = inputs["A"]
    return honest(inputs | {"A": A.flatten().view(A.shape[1], A.shape[0]).t().contiguous()}, options, dy)


@fault
def state_of_the_previous_sequence_not_cleared(inputs, options, dy):
    def stale(p):
        last = original(p).last
        return original(dataclasses.replace(p, initial=p.initial + last.roll(1, -1)))

    with replaced("run", stale) as original:
        return honest(inputs, options, dy)


@fault
def padding_not_masked(inputs, options, dy):
    """One frame too many at the far end: u = 0 there, but softplus(0 + bias) is not 0 and decays the state."""

    def padded(p):
        extra = torch.exp(truth.softplus(torch.zeros_like(p.x[:, :, :1]))[:, :, None] * p.A[:, :, None, None])
        return original(dataclasses.replace(p, C=p.C * (extra if p.reverse else 1)))

    with replaced("run", padded) as original:
        return honest(inputs, options, dy)


@fault
def one_element_never_written(inputs, options, dy):
    found = honest(inputs, options, dy)
    found["u"].view(-1)[-1] = float("nan")
    return found


@fault
def decayed_state_by_subtraction(inputs, options, dy):
    def subtracted(p):
        trace = original(p)
        inflow = (trace.d * p.u)[:, :, None] * p.B
        return dataclasses.replace(trace, before=(trace.after - inflow) / trace.a)

    with replaced("run", subtracted) as original:
        return honest(inputs, options, dy)


@fault
def exponential_of_degree_three(inputs, options, dy):
    def cubic(p):
        trace = original(p)
        t = trace.d[:, :, None] * p.A[:, :, None, None] * 1.4426950408889634
        r = (t - t.round()) * 0.6931471805599453
        a = (1 + r * (1 + r * (0.5 + r * 0.1666666))) * torch.exp2(t.round())
        return dataclasses.replace(trace, after=trace.after * (a / trace.a), y=trace.y * (a / trace.a)[:, :, 0])

    with replaced("run", cubic) as original:
        return honest(inputs, options, dy)


@fault
def states_kept_in_bfloat16(inputs, options, dy):
    def low(p):
        trace = original(p)
        after = trace.after.bfloat16().float()
        return dataclasses.replace(trace, after=after, y=(p.C * after).sum(2) + p.D[:, None, None] * p.u)

    with replaced("run", low) as original:
        return honest(inputs, options, dy)


@fault
def bias_added_after_softplus(inputs, options, dy):
    def late(inputs, options, reverse):
        p = original(inputs, options, reverse)
        bias = truth.of_direction(inputs, "delta_bias", reverse)[1][:, None, None]
        return dataclasses.replace(p, x=truth.softplus(p.x - bias) + bias, softplus=False)

    with replaced("direction_of", late) as original:
        return honest(inputs, options, dy)


@fault
def skip_of_the_reverse_direction_lost(inputs, options, dy):
    return honest(inputs | {"D_b": torch.zeros_like(inputs["D"])}, options, dy)


@fault
def groups_interleaved(inputs, options, dy):
    def interleaved(x, u):
        if x.dim() != u.dim() + 1:
            return original(x, u)
        return truth.flatten_lanes(x, 4).repeat(1, u.shape[1] // x.shape[1], 1, 1, 1)

    with replaced("expand_states", interleaved) as original:
        return honest(inputs, options, dy)


@fault
def expanded_output_gradient_read_as_dense(inputs, options, dy):
    return honest(inputs, options, dy, kernel_dy=dy.flip(-1))


@fault
def last_channel_of_dA_from_another_batch(inputs, options, dy):
    found = honest(inputs, options, dy)
    half = {name: x if x is None or x.shape[0] != dy.shape[0] else x[:1] for name, x in inputs.items()}
    found["A"][-1] = honest(half, options, dy[:1])["A"][-1]
    return found


@fault
def sum_of_directions_stored_between(inputs, options, dy):
    """Each direction's y rounded to half a float32 mantissa before they are added."""

    def rounded(ys, options):
        return original([y.half().float() for y in ys], options)

    with replaced("merged", rounded) as original:
        return honest(inputs, options, dy)
