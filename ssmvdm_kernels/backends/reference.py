"""The specification as a backend: any device, any floating dtype, differentiable twice, slow."""

from __future__ import annotations

import torch
from torch import Tensor

from .. import reference
from ..ops import ConvTensors, ScanTensors
from ..ops_s4d import S4dTensors
from .base import Backend


class ReferenceBackend(Backend):
    name = "reference"

    def missing(self) -> str | None:
        return None

    def obstacles(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        return []

    def scan(
        self, tensors: ScanTensors, direction: int, merge: int, delta_softplus: bool, return_last_state: bool
    ) -> tuple[Tensor, Tensor]:
        return reference.scan(tensors, direction, merge, delta_softplus, return_last_state)

    def conv1d(self, tensors: ConvTensors, direction: int, silu: bool) -> tuple[Tensor, Tensor]:
        return reference.conv1d(tensors, direction, silu)

    def s4d(self, tensors: S4dTensors, direction: int, merge: int) -> Tensor:
        return reference.s4d(tensors, direction, merge)
