"""The registry of backends, the choice among them, and the explanation of that choice."""

from __future__ import annotations

import os
import warnings

import torch
from torch import Tensor

from .. import validation
from .base import Backend
from .cpu import CpuBackend
from .cuda import CudaBackend
from .reference import ReferenceBackend
from .triton import TritonBackend

NAMES = ("cuda", "triton", "cpu", "reference")  # in the order of preference of backend="auto"

REGISTRY: dict[str, Backend] = {
    backend.name: backend for backend in (CudaBackend(), TritonBackend(), CpuBackend(), ReferenceBackend())
}
_FALLBACK = "reference"
_warned_of: set[str] = set()


def available_backends() -> tuple[str, ...]:
    """The names of the backends that work on this machine, in the order in which backend="auto" prefers them."""
    return tuple(name for name in NAMES if missing(name) is None)


def missing(name: str) -> str | None:
    """Why the backend `name` runs nothing on this machine, with the remedy, or None if it runs."""
    return REGISTRY[name].missing()


def select(caller: str, first: Tensor, requested: str) -> Backend:
    """The backend that takes a call whose first sequence is `first`, or an error that says why there is none."""
    _check_name(caller, requested)
    if requested != "auto":
        reasons = _obstacles(requested, first)
        if reasons:
            raise ValueError(f"{caller}: backend={requested!r} cannot take this call. {' '.join(reasons)}")
        return REGISTRY[requested]
    name = _choose(first)
    if name == _FALLBACK:
        _announce_fallback(caller, str(first.device), _why_only_reference(first))
    return REGISTRY[name]


def explain(u: Tensor, *arguments: object, backend: str = "auto", **named_arguments: object) -> str:
    """Say which backend a call would take and, for each of the others, why it would not.

    Replace the name of a function by `explain` and leave its arguments as they are: `explain(u, delta, A, B, C, z=z)`.
    The choice rests on the device and the dtype of u (x for the convolution), after autocast; the other arguments are
    accepted and not looked at. Nothing is computed.

    Raises what every such call raises, whichever backend is to take it:
        TypeError: u is not a dense tensor of float32, bfloat16, float16 or float64.
        ValueError: u has fewer than three dimensions; `backend` is not a known name.
    """
    caller = "explain"
    validation.check_tensor(caller, "u", u)
    validation.check_first(caller, "u", u)
    _check_name(caller, backend)
    dtype = _effective_dtype(u)
    chosen = _choose(u) if backend == "auto" else backend
    lines = []
    for name in NAMES:
        reasons = _obstacles(name, u)
        if reasons:
            lines.append(f"  {name}: cannot. {' '.join(reasons)}")
        elif name == chosen:
            lines.append(f"  {name}: takes the call.")
        elif backend != "auto":
            lines.append(f"  {name}: could, but backend={backend!r} is never replaced by another.")
        elif name == _FALLBACK:
            lines.append(f"  {name}: could, but it is the slow specification, used only when nothing else can run.")
        else:
            lines.append(f"  {name}: could, but {chosen} is preferred.")
    refused = bool(_obstacles(chosen, u))
    verdict = f"is refused, {chosen} cannot take it" if refused else f"takes {chosen}"
    name = str(dtype).removeprefix("torch.")
    return "\n".join([f"A {name} call on {u.device} with backend={backend!r} {verdict}.", *lines])


def _check_name(caller: str, requested: str) -> None:
    validation.check_choice(caller, "backend", requested, ("auto", *NAMES))


def _effective_dtype(first: Tensor) -> torch.dtype:
    low = validation.autocast_dtype(first)
    return low if low is not None and first.dtype == torch.float32 else first.dtype


def _obstacles(name: str, first: Tensor) -> list[str]:
    return REGISTRY[name].obstacles(first.device, _effective_dtype(first))


def _choose(first: Tensor) -> str:
    for name in NAMES:
        if REGISTRY[name].is_automatic(first.device) and not _obstacles(name, first):
            return name
    raise AssertionError("the reference takes every call")


def _why_only_reference(first: Tensor) -> str:
    """Why none of the backends for the device of `first` can run. Those for other devices would be noise here."""
    meant = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}.get(first.device.type, NAMES[:-1])
    return " ".join(reason for name in meant for reason in _obstacles(name, first))


def _announce_fallback(caller: str, device: str, reasons: str) -> None:
    message = (
        f"{caller}: only the slow reference can take this call on {device}. {reasons} "
        "Pass backend='reference' to use it on purpose."
    )
    if os.environ.get("SSMVDM_STRICT", "0") not in ("", "0"):
        raise RuntimeError(f"{message} (SSMVDM_STRICT is set, so this is an error.)")
    if reasons not in _warned_of:
        _warned_of.add(reasons)
        warnings.warn(message, RuntimeWarning, stacklevel=4)


# The message belongs to the moment of tracing. This mark is all that torch.compiler.assume_constant_result sets, but
# calling that imports the whole compiler, seconds that every import of this package would pay.
_announce_fallback._dynamo_marked_constant = True  # type: ignore[attr-defined]
