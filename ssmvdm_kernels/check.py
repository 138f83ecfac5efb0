"""Parity check of the installed binaries on this machine's devices, in a few seconds; Triton compiles minutes for it.

    python -m ssmvdm_kernels.check [--backend NAME ...]

Exit status 0: every backend here, or each of those named, computes what it should; 1: it does not, or one that is named
does not run here.

Each compiled backend runs the public functions forward and backward, in every storage type, memory layout, direction
and merge, and every output and every gradient is compared with the float64 reference. An error is

    max |result - truth| / max |truth|      per tensor

and may be at most twice that of the float32 reference rounded to the same storage type (the rule of FlashAttention's
tests), plus one rounding of the arithmetic per time step, since a recurrence may accumulate them.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from . import (
    available_backends,
    backends,
    bidirectional_conv1d,
    bidirectional_s4d_scan,
    bidirectional_selective_scan,
    s4d_scan,
    selective_scan,
)
from .info import missing

BATCH, CHANNELS, STATES, LENGTH, GROUPS, WIDTH = 2, 40, 16, 19, 2, 4  # channels and length end in part of a vector,
LAYOUTS = {"lanes": (3, 7), "length": (), "channels": ()}  # and so do the lanes; by the axis that is contiguous
BACKENDS = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}  # by device type
DTYPES = ("float32", "bfloat16", "float16", "float64")
SCAN_MODES = ("forward", "reverse", "sum", "mean", "cat", "none")
CONV_MODES = ("shared filter", "two filters")
FLOAT32_ROUNDING = 2.0**-24

Named = dict[str, Tensor]


@dataclass
class Row:
    """The worst tensor of one line of the table."""

    operator: str
    mode: str
    dtype: str
    where: str = ""
    error: float = 0.0
    allowed: float = 1.0
    problem: str | None = None  # an exception, or a result of the wrong shape or type

    @property
    def has_passed(self) -> bool:
        return self.problem is None and self.error <= self.allowed

    def take(self, where: str, error: float, allowed: float) -> None:
        """Keep this tensor if it uses more of its allowance than the worst so far."""
        if self.where == "" or error / allowed > self.error / self.allowed:
            self.where, self.error, self.allowed = where, error, allowed


class Inputs:
    """Random float32 tensors of one layout, always the same. Sequences are multiples of 1/16 below 8 in magnitude,
    which every storage type holds exactly, so that one float64 truth serves all of them."""

    def __init__(self, layout: str, device: str) -> None:
        self.generator = torch.Generator().manual_seed(0)
        self.layout, self.device, self.lanes = layout, device, LAYOUTS[layout]

    def sequence(self, *leading: int, shift: float = 0.0) -> Tensor:
        """(*leading, length, *lanes), contiguous in the axis the layout names."""
        if self.layout == "channels":
            x = torch.randn(leading[0], LENGTH, *leading[1:], generator=self.generator).movedim(1, -1)
        else:
            x = torch.randn(*leading, LENGTH, *self.lanes, generator=self.generator)
        return (to_sixteenths(x) + shift).to(self.device)

    def parameter(self, *shape: int) -> Tensor:
        return torch.randn(*shape, generator=self.generator).to(self.device)

    def decay(self) -> Tensor:
        """A (channels, states), negative, from slow to fast."""
        spread = torch.linspace(-1.0, 2.0, STATES).expand(CHANNELS, STATES)
        return -torch.exp(spread).to(self.device)

    def modulations(self) -> tuple[Tensor, Tensor]:
        """B and C: per layout another pair of the three accepted forms."""
        plain, grouped = (BATCH, STATES), (BATCH, GROUPS, STATES)
        if self.layout == "lanes":
            return self.sequence(*plain), self.sequence(*grouped)
        if self.layout == "length":
            return self.sequence(*grouped), self.parameter(CHANNELS, STATES)
        return self.sequence(*plain), self.sequence(*plain)

    def direction(self, suffix: str = "") -> Named:
        B, C = self.modulations()
        own = {
            "u": self.sequence(BATCH, CHANNELS),
            "delta": self.sequence(BATCH, CHANNELS, shift=-1.0),
            "A": self.decay(),
            "B": B,
            "C": C,
            "D": self.parameter(CHANNELS),
            "delta_bias": self.parameter(CHANNELS),
        }
        return {name + suffix: tensor for name, tensor in own.items()}


def scan_case(mode: str, inputs: Inputs) -> tuple[Named, Callable[..., Named]]:
    """The tensors of one scan and a function of (tensors, backend) that gives its named outputs."""
    tensors = {**inputs.direction(), "z": inputs.sequence(BATCH, CHANNELS)}
    if mode in ("forward", "reverse"):
        tensors["initial_state"] = inputs.parameter(BATCH, CHANNELS, STATES, *inputs.lanes)

        def run(tensors: Named, backend: str) -> Named:
            options = {"delta_softplus": True, "return_last_state": True, "reverse": mode == "reverse"}
            y, last_state = selective_scan(**tensors, **options, backend=backend)
            return {"y": y, "last_state": last_state}

        return tensors, run
    if mode in ("sum", "cat"):
        tensors |= inputs.direction("_b")

    def run_both(tensors: Named, backend: str) -> Named:
        y = bidirectional_selective_scan(**tensors, delta_softplus=True, merge=mode, backend=backend)
        return {"y": y[0], "y_b": y[1]} if mode == "none" else {"y": y}

    return tensors, run_both


def s4d_case(mode: str, inputs: Inputs) -> tuple[Named, Callable[..., Named]]:
    """The same for the S4D scan; `decay` and `weight` are complex."""

    def direction(suffix: str) -> Named:
        turn = torch.exp(torch.complex(inputs.decay() / 8, inputs.parameter(CHANNELS, STATES)))
        weight = torch.complex(inputs.parameter(CHANNELS, STATES), inputs.parameter(CHANNELS, STATES))
        own = {"u": inputs.sequence(BATCH, CHANNELS), "decay": turn, "weight": weight, "D": inputs.parameter(CHANNELS)}
        return {name + suffix: tensor for name, tensor in own.items()}

    tensors = {**direction(""), "z": inputs.sequence(BATCH, CHANNELS)}
    if mode in ("forward", "reverse"):
        return tensors, lambda tensors, backend: {
            "y": s4d_scan(**tensors, reverse=mode == "reverse", backend=backend)
        }  # fmt: skip
    if mode in ("sum", "cat"):
        tensors |= direction("_b")

    def run_both(tensors: Named, backend: str) -> Named:
        y = bidirectional_s4d_scan(**tensors, merge=mode, backend=backend)
        return {"y": y[0], "y_b": y[1]} if mode == "none" else {"y": y}

    return tensors, run_both


def conv_case(mode: str, inputs: Inputs) -> tuple[Named, Callable[..., Named]]:
    """The same for the convolution."""
    tensors = {"x": inputs.sequence(BATCH, CHANNELS)}
    for suffix in ("", "_b") if mode == "two filters" else ("",):
        tensors |= {"weight" + suffix: inputs.parameter(CHANNELS, WIDTH), "bias" + suffix: inputs.parameter(CHANNELS)}

    def run(tensors: Named, backend: str) -> Named:
        return dict(zip(("y", "y_b"), bidirectional_conv1d(**tensors, backend=backend), strict=True))

    return tensors, run


def to_sixteenths(x: Tensor) -> Tensor:
    return (16 * x.clamp(-4, 4)).round() / 16


def stored_as(dtype: torch.dtype, tensors: Named) -> Named:
    """The same numbers with sequences in `dtype`; parameters and states stay float32, or follow float64."""
    wide = torch.promote_types(dtype, torch.float32)

    def stored(name: str, tensor: Tensor) -> Tensor:
        if tensor.is_complex():
            return tensor.to(wide.to_complex())
        return tensor.to(wide if tensor.dim() <= 2 or name == "initial_state" else dtype)

    return {name: stored(name, tensor) for name, tensor in tensors.items()}


def results(run: Callable[..., Named], tensors: Named, backend: str) -> Named:
    """Outputs and, under "d" + name, the gradients of a fixed weighted sum of them; complex ones as pairs of reals."""
    leaves = {name: tensor.detach().requires_grad_() for name, tensor in tensors.items()}
    outputs = run(leaves, backend)
    generator = torch.Generator().manual_seed(1)
    weights = [to_sixteenths(torch.randn(y.shape, generator=generator)).to(y.device, y.dtype) for y in outputs.values()]
    gradients = torch.autograd.grad(list(outputs.values()), list(leaves.values()), weights)
    named = {f"d{name}": gradient for name, gradient in zip(leaves, gradients, strict=True)}
    found = {name: tensor.detach() for name, tensor in (outputs | named).items()}
    return {name: torch.view_as_real(tensor) if tensor.is_complex() else tensor for name, tensor in found.items()}


def compare(ours: Named, eager: Named, truth: Named) -> Iterator[tuple[str, float, float]]:
    """(tensor, error, allowed error) for every output and gradient. `eager` is the reference in float32; its error in
    another type is that of its rounding to it or, for float64, which is the truth itself, scaled."""
    for name, exact in truth.items():
        mine = ours[name]
        if mine.shape != exact.shape:
            raise ValueError(f"{name}: expected shape {tuple(exact.shape)}, got {tuple(mine.shape)}")
        scale = exact.abs().max().item()
        finer = 2.0**-29 if mine.dtype == torch.float64 else 1.0
        base = eager[name] if mine.dtype == torch.float64 else eager[name].to(mine.dtype)
        error, eager_error = ((t.double() - exact).abs().max().item() / scale for t in (mine, base))
        # Written so that a NaN, which every comparison denies, counts as an infinite error.
        yield name, error if error < math.inf else math.inf, finer * (2 * eager_error + LENGTH * FLOAT32_ROUNDING)


def check_case(backend: str, dtype: torch.dtype, case: tuple[Named, Callable], eager: Named, truth: Named):
    """What `compare` yields for one case in one storage type. ValueError on a result of the wrong type."""
    tensors, run = case
    stored = stored_as(dtype, tensors)
    ours = results(run, stored, backend)
    expected = {f"d{name}": tensor.dtype.to_real() for name, tensor in stored.items()} | {
        name: torch.promote_types(dtype, torch.float32) if name == "last_state" else dtype
        for name in ("y", "y_b", "last_state")
    }
    for name, tensor in ours.items():
        if tensor.dtype != expected[name]:
            raise ValueError(f"{name}: expected {expected[name]}, got {tensor.dtype}")
    yield from compare(ours, eager, truth)


def storage_types(backend: str, device: str) -> list[str]:
    """Those that a backend takes on a device."""
    empty = {name: torch.empty(0, dtype=getattr(torch, name), device=device) for name in DTYPES}
    return [name for name, x in empty.items() if not backends.REGISTRY[backend].obstacles(x.device, x.dtype)]


def check_backend(backend: str, device: str, dtypes: Sequence[str]) -> Iterator[Row]:
    """One row per operator, mode and storage type; each covers the three layouts."""
    cases = [("scan", mode, scan_case) for mode in SCAN_MODES] + [("s4d", mode, s4d_case) for mode in SCAN_MODES]
    cases += [("conv1d", mode, conv_case) for mode in CONV_MODES]
    for operator, mode, make in cases:
        rows = [Row(operator, mode, dtype) for dtype in dtypes]
        for layout in LAYOUTS:
            tensors, run = case = make(mode, Inputs(layout, device))
            eager = results(run, tensors, "reference")
            truth = results(run, stored_as(torch.float64, tensors), "reference")
            for row in rows:
                try:
                    for name, error, allowed in check_case(backend, getattr(torch, row.dtype), case, eager, truth):
                        row.take(f"{name}, {layout} contiguous", error, allowed)
                except Exception as error:  # a broken binary can fail in any way; the table must still be completed
                    row.problem = f"{layout} contiguous: {type(error).__name__}: {str(error).splitlines()[0]}"
        yield from rows


def print_row(row: Row) -> None:
    verdict = "ok" if row.has_passed else "FAILED"
    numbers = f"{row.error:10.1e} {row.allowed:10.1e}" if row.problem is None else f"{'-':>10} {'-':>10}"
    print(
        f"{row.operator:<7} {row.mode:<14} {row.dtype:<9} {numbers}  {verdict:<7} {row.problem or row.where}",
        flush=True,
    )


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(
        prog="python -m ssmvdm_kernels.check",
        description="Compares every compiled backend on this machine with the float64 reference.",
    )
    names = [name for known in BACKENDS.values() for name in known]
    parser.add_argument("--backend", nargs="+", choices=names, default=[], help="these alone (default: all)")
    named = parser.parse_args(arguments).backend
    started = time.perf_counter()
    checked = failed = 0
    absent = dict.fromkeys(named)
    for device in ("cpu", "cuda") if torch.cuda.is_available() else ("cpu",):
        for backend in (name for name in BACKENDS[device] if name in (named or names)):
            if backend not in available_backends():
                print(f"{backend} on {device}: not checked. {missing(backend)}")
                continue
            absent.pop(backend, None)
            print(f"{backend} on {device}")
            print(f"{'':<7} {'':<14} {'':<9} {'error':>10} {'allowed':>10}  {'':<7} worst tensor")
            for row in check_backend(backend, device, storage_types(backend, device)):
                print_row(row)
                checked += 1
                failed += not row.has_passed
    elapsed_s = time.perf_counter() - started
    if checked == 0:
        print("Nothing was checked: no compiled backend runs here.")
    elif failed or absent:
        problems = [f"no {name} here" for name in absent] + ([f"{failed} of {checked} rows"] if failed else [])
        print(f"FAILED: {', '.join(problems)}, {elapsed_s:.1f} s.")
    else:
        print(f"All {checked} rows within their allowance, {elapsed_s:.1f} s.")
    return 0 if checked and not failed and not absent else 1


if __name__ == "__main__":
    raise SystemExit(main())
