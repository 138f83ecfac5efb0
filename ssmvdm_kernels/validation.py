"""The one place where arguments are checked, for every backend, before anything is computed.

A check costs a few comparisons: it runs at every call. What fails is a TypeError (wrong kind or dtype) or a
ValueError (wrong shape, device or value) that names the tensor, what was expected and what came.
"""

from __future__ import annotations

import reprlib

import torch
from torch import Tensor
from torch.autograd import forward_ad

from .ops import ConvTensors, ScanTensors
from .ops_s4d import S4dTensors

Arguments = ScanTensors | ConvTensors | S4dTensors

SEQUENCE_DTYPES = (torch.float32, torch.bfloat16, torch.float16, torch.float64)

_LIKE_U = ("delta", "z", "u_b", "delta_b")
_PER_CHANNEL = ("D", "delta_bias", "D_b", "delta_bias_b")
_MODULATIONS = ("B", "C", "B_b", "C_b")
_REQUIRED = ("u", "delta", "A", "B", "C", "x", "weight", "decay")


def prepare_scan(caller: str, tensors: ScanTensors) -> ScanTensors:
    """Apply the autocast rule to the arguments of a scan and check them; returns what the backends are given."""
    _check_are_tensors(caller, tensors)
    check_first(caller, "u", tensors.u)
    low = autocast_dtype(tensors.u)
    if low is not None:
        named = zip(tensors._fields, tensors, strict=True)
        tensors = ScanTensors(*(_cast_scan_tensor(name, tensor, low) for name, tensor in named))

    u, A = tensors.u, tensors.A
    sequences = [is_sequence(name, tensor) for name, tensor in zip(tensors._fields, tensors, strict=True)]
    _check_dtypes_and_devices(caller, tensors, u, sequences)
    batch, channels, _, *lanes = u.shape
    if A.dim() != 2 or A.shape[0] != channels:
        raise ValueError(
            f"{caller}: A must have the shape (channels, states) with the {channels} channels of u, "
            f"but has {tuple(A.shape)}."
        )
    for name, tensor in zip(tensors._fields, tensors, strict=True):
        if tensor is None:
            continue
        if name in _LIKE_U:
            check_shape(caller, name, tensor, tuple(u.shape), "the shape of u")
        elif name in _PER_CHANNEL:
            check_shape(caller, name, tensor, (channels,), "one value per channel of u")
        elif name in _MODULATIONS:
            check_modulation(caller, name, tensor, u, A.shape[1])
        elif name == "A_b":
            check_shape(caller, name, tensor, tuple(A.shape), "the shape of A")
        elif name == "initial_state":
            state = (batch, channels, A.shape[1], *lanes)
            check_shape(caller, name, tensor, state, "the shape (batch, channels, states, *lanes)")
    return tensors


def prepare_conv1d(caller: str, tensors: ConvTensors) -> ConvTensors:
    """Apply the autocast rule to the arguments of a convolution and check them."""
    _check_are_tensors(caller, tensors)
    check_first(caller, "x", tensors.x)
    low = autocast_dtype(tensors.x)
    if low is not None:
        x = tensors.x.to(low) if tensors.x.dtype == torch.float32 else tensors.x
        tensors = ConvTensors(x, *(t if t is None else t.to(torch.float32) for t in tensors[1:]))

    x, weight = tensors.x, tensors.weight
    _check_dtypes_and_devices(caller, tensors, x, [t is not None and t.dtype == x.dtype for t in tensors])
    channels = x.shape[1]
    if weight.dim() != 2 or weight.shape[0] != channels or weight.shape[1] == 0:
        raise ValueError(
            f"{caller}: weight must have the shape (channels, width) with the {channels} channels of x and a width of "
            f"at least 1, but has {tuple(weight.shape)}."
        )
    if tensors.weight_b is not None:
        check_shape(caller, "weight_b", tensors.weight_b, tuple(weight.shape), "the shape of weight")
    for name in ("bias", "bias_b"):
        tensor = getattr(tensors, name)
        if tensor is not None:
            check_shape(caller, name, tensor, (channels,), "one value per channel of x")
    return tensors


def prepare_s4d(caller: str, tensors: S4dTensors) -> S4dTensors:
    """Apply the autocast rule to the arguments of an S4D scan, with complex `decay` and `weight`, and check them."""
    _check_are_tensors(caller, tensors)
    check_first(caller, "u", tensors.u)
    low = autocast_dtype(tensors.u)
    if low is not None:
        low_names = ("u", "z", "u_b")
        named = zip(tensors._fields, tensors, strict=True)
        tensors = S4dTensors(*(t.to(low) if n in low_names and t is not None and t.dtype == torch.float32 else t
                               for n, t in named))  # fmt: skip
    u, decay = tensors.u, tensors.decay
    parameter = torch.float64 if u.dtype == torch.float64 else torch.float32
    modes = torch.complex128 if u.dtype == torch.float64 else torch.complex64
    dtypes = {"z": u.dtype, "u_b": u.dtype, "D": parameter, "D_b": parameter}
    if decay.dim() != 2 or decay.shape[0] != u.shape[1]:
        raise ValueError(
            f"{caller}: decay must have the shape (channels, modes) with the {u.shape[1]} channels of u, "
            f"but has {tuple(decay.shape)}."
        )
    for name, tensor in zip(tensors._fields[1:], tensors[1:], strict=True):
        if tensor is None:
            continue
        expected = dtypes.get(name, modes)
        if tensor.dtype != expected:
            raise TypeError(
                f"{caller}: {name} must be {dtype_name(expected)}, which goes with {dtype_name(u.dtype)} in u, "
                f"but is {dtype_name(tensor.dtype)}."
            )
        check_device(caller, name, tensor, "u", u)
        if name in ("z", "u_b"):
            check_shape(caller, name, tensor, tuple(u.shape), "the shape of u")
        elif name in ("D", "D_b"):
            check_shape(caller, name, tensor, (u.shape[1],), "one value per channel of u")
        else:
            check_shape(caller, name, tensor, tuple(decay.shape), "the shape of decay")
    return tensors


def check_flag(caller: str, name: str, value: object) -> None:
    if not isinstance(value, bool):
        raise TypeError(f"{caller}: {name} must be True or False, but is {_described(value)}.")


def check_choice(caller: str, name: str, value: object, choices: tuple[object, ...]) -> None:
    # The type first: == with an array or a tensor is no bool.
    if not any(isinstance(value, type(choice)) and value == choice for choice in choices):
        known = ", ".join(repr(choice) for choice in choices)
        raise ValueError(f"{caller}: {name} must be one of {known}, but is {reprlib.repr(value)}.")


def check_tensor(caller: str, name: str, value: object) -> None:
    if not isinstance(value, Tensor):
        raise TypeError(f"{caller}: {name} must be a torch.Tensor, but is {_described(value)}.")
    if value.is_nested or value.layout != torch.strided:
        kind = "it is nested" if value.is_nested else f"its layout is {value.layout}"
        raise TypeError(f"{caller}: {name} must be a dense tensor, but {kind}.")


def check_dtype(caller: str, name: str, tensor: Tensor, allowed: tuple[torch.dtype, ...], where: str = "") -> None:
    if tensor.dtype not in allowed:
        expected = " or ".join(dict.fromkeys(dtype_name(dtype) for dtype in allowed))
        raise TypeError(f"{caller}: {name} must be {expected}{where}, but is {dtype_name(tensor.dtype)}.")


def check_device(caller: str, name: str, tensor: Tensor, first_name: str, first: Tensor) -> None:
    if tensor.device != first.device:
        raise ValueError(
            f"{caller}: {name} must be on the device of {first_name}, {first.device}, but is on {tensor.device}."
        )


def check_size(caller: str, name: str, value: object) -> None:
    if isinstance(value, bool) or not isinstance(value, int):
        raise TypeError(f"{caller}: {name} must be an integer, but is {_described(value)}.")
    if value < 1:
        raise ValueError(f"{caller}: {name} must be at least 1, but is {value}.")


def check_like_parameters(caller: str, name: str, x: Tensor, parameter: Tensor) -> None:
    """Check an input of a module against one of its parameters: dtype (autocast brings any floating dtype to its own)
    and device."""
    if not is_cast(x):
        check_dtype(caller, name, x, (parameter.dtype,), " like the parameters")
    check_device(caller, name, x, "the parameters", parameter)


def is_sequence(name: str, tensor: Tensor | None) -> bool:
    """Whether an argument of a scan varies in time, and so is stored in u's dtype; the others are parameters."""
    if tensor is None:
        return False
    return name == "u" or name in _LIKE_U or (name in _MODULATIONS and tensor.dim() != 2)


def autocast_dtype(first: Tensor) -> torch.dtype | None:
    """The dtype to which autocast brings float32 sequences on the device of `first`, or None where it does nothing.

    float64 is a choice that autocast leaves alone in all of PyTorch, and so do we.
    """
    device_type = first.device.type
    if device_type == "meta" or first.dtype == torch.float64 or not torch.is_autocast_enabled(device_type):
        return None
    return torch.get_autocast_dtype(device_type)


def is_cast(x: Tensor) -> bool:
    """Whether autocast brings tensors like x to its dtype."""
    return x.is_floating_point() and autocast_dtype(x) is not None


def is_forward_mode() -> bool:
    """Whether forward-mode derivatives are being taken, as torch.func.jvp and dual numbers do."""
    return forward_ad._current_level >= 0


def _cast_scan_tensor(name: str, tensor: Tensor | None, low: torch.dtype) -> Tensor | None:
    if tensor is None:
        return None
    if is_sequence(name, tensor):
        return tensor.to(low) if tensor.dtype == torch.float32 else tensor
    return tensor.to(torch.float32) if tensor.is_floating_point() else tensor


# -- single checks -----------------------------------------------------------------------------------------------------


def _check_are_tensors(caller: str, tensors: Arguments) -> None:
    for name, tensor in zip(tensors._fields, tensors, strict=True):
        if tensor is not None or name in _REQUIRED:
            check_tensor(caller, name, tensor)


def check_first(caller: str, name: str, tensor: Tensor) -> None:
    """Check u or x, whose shape, dtype and device set those of the rest."""
    if tensor.dtype not in SEQUENCE_DTYPES:
        raise TypeError(
            f"{caller}: {name} must be float32, bfloat16, float16 or float64, but is {dtype_name(tensor.dtype)}."
        )
    if tensor.dim() < 3:
        raise ValueError(
            f"{caller}: {name} must have the shape (batch, channels, length, *lanes), at least 3 dimensions, "
            f"but has {tuple(tensor.shape)}."
        )


def _check_dtypes_and_devices(caller, tensors: Arguments, first: Tensor, sequences: list[bool]) -> None:
    """A tensor for which `sequences` holds has the dtype of `first`, any other is a float32 (float64) parameter."""
    first_name = tensors._fields[0]
    parameter_dtype = torch.float64 if first.dtype == torch.float64 else torch.float32
    for name, tensor, sequence in zip(tensors._fields, tensors, sequences, strict=True):
        if tensor is None:
            continue
        expected = first.dtype if sequence else parameter_dtype
        if tensor.dtype != expected:
            why = "the dtype of" if sequence else f"which goes with {dtype_name(first.dtype)} in"
            raise TypeError(
                f"{caller}: {name} must be {dtype_name(expected)}, {why} {first_name}, "
                f"but is {dtype_name(tensor.dtype)}."
            )
        check_device(caller, name, tensor, first_name, first)


def check_shape(caller: str, name: str, tensor: Tensor, expected: tuple[int, ...], meaning: str) -> None:
    if tuple(tensor.shape) != expected:
        raise ValueError(f"{caller}: {name} must have {meaning}, {expected}, but has {tuple(tensor.shape)}.")


def check_modulation(caller: str, name: str, tensor: Tensor, u: Tensor, states: int) -> None:
    """Check B or C, whose number of dimensions says which of its three forms it has."""
    batch, channels, *time = u.shape
    if tensor.dim() == 2:
        check_shape(caller, name, tensor, (channels, states), "the shape (channels, states)")
    elif tensor.dim() == u.dim():
        check_shape(caller, name, tensor, (batch, states, *time), "the shape (batch, states, length, *lanes)")
    elif tensor.dim() == u.dim() + 1:
        groups = tensor.shape[1]
        expected = (batch, groups, states, *time)
        check_shape(caller, name, tensor, expected, "the shape (batch, groups, states, length, *lanes)")
        if groups == 0 or channels % groups != 0:
            raise ValueError(
                f"{caller}: the groups of {name} must divide the {channels} channels, but there are {groups}: "
                f"{name} has {tuple(tensor.shape)}."
            )
    else:
        raise ValueError(
            f"{caller}: {name} must have the shape (batch, states, length, *lanes) = {(batch, states, *time)}, "
            f"(batch, groups, states, length, *lanes), or (channels, states) = {(channels, states)} when constant in "
            f"time, but has {tuple(tensor.shape)}."
        )


def _described(value: object) -> str:
    return "None" if value is None else f"{reprlib.repr(value)}, of type {type(value).__name__}"


def dtype_name(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
