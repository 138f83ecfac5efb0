"""Between the suite's cases, which are torch tensors with any number of lane axes, and jobs on numpy arrays."""

from __future__ import annotations

import math

import numpy as np
import torch
from torch import Tensor

from .calls import Job, Machine

SEQUENCES = ("u", "delta", "z", "u_b", "delta_b", "dy", "dy_b", "x")
STATES = ("B", "C", "B_b", "C_b")
LANE_STATES = ("initial_state", "dlast")  # contiguous, with states in the place of time


def to_numpy(x: Tensor) -> np.ndarray:
    """The same memory; bfloat16 as uint16."""
    return x.view(torch.int16).numpy().view(np.uint16) if x.dtype == torch.bfloat16 else x.numpy()


def to_torch(x: np.ndarray, like: Tensor) -> Tensor:
    """A copy with the shape and type of `like`, whose size it has."""
    flat = torch.from_numpy(np.ascontiguousarray(x).view(np.int16) if like.dtype == torch.bfloat16 else x.copy())
    flat = flat.view(torch.bfloat16) if like.dtype == torch.bfloat16 else flat
    if like.is_complex():
        flat = torch.view_as_complex(flat.contiguous())
    return flat.reshape(like.shape)


def one_lane_axis(name: str, x: Tensor | None, sequence_dims: int) -> np.ndarray | None:
    """An argument as kernels take it; a view where the lane axes are contiguous with one another."""
    if x is None:
        return None
    x = x.detach()
    if name in LANE_STATES:
        return to_numpy(x.contiguous().reshape(*x.shape[:3], math.prod(x.shape[3:])))
    if name in SEQUENCES or (name in STATES and x.dim() >= sequence_dims):
        leading = 4 if name in STATES and x.dim() == sequence_dims + 1 else 3
        return to_numpy(x.reshape(*x.shape[:leading], math.prod(x.shape[leading:])))
    return to_numpy((torch.view_as_real(x) if x.is_complex() else x).contiguous())


def job_of(
    name: str, kernel: str, inputs: dict, options: dict, machine: Machine | None = None, needs: tuple | None = None
) -> Job:
    """Any kernel's job from torch tensors by name."""
    dims = inputs["x" if kernel == "conv" else "u"].dim()
    arrays = {key: one_lane_axis(key, x, dims) for key, x in inputs.items()}
    return Job(name, kernel, arrays, options, machine or Machine(), needs)
