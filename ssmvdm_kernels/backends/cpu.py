"""The C++ kernels. Also the path of meta tensors, for which the shapes of the operators are all there is to compute."""

from __future__ import annotations

import torch
from torch import Tensor

from ssmvdm_kernels import ops, ops_s4d
from ssmvdm_kernels.backends.base import Backend


class CpuBackend(Backend):
    name = "cpu"
    has_operators = True

    def missing(self) -> str | None:
        if ops.cpu_extension_error is None:
            return None
        return f"{ops.cpu_extension_error} Build it with: pip install --no-build-isolation <source of ssmvdm-kernels>."

    def obstacles(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        if device.type == "meta":
            return []
        reasons = []
        if device.type != "cpu":
            reasons.append(f"It computes on CPU tensors, and these are on {device}.")
        missing = self.missing()
        if missing is not None:
            reasons.append(missing)
        return reasons

    def scan(
        self, tensors: ops.ScanTensors, direction: int, merge: int, delta_softplus: bool, return_last_state: bool
    ) -> tuple[Tensor, Tensor]:
        return ops.scan(tensors, direction, merge, delta_softplus, return_last_state)

    def conv1d(self, tensors: ops.ConvTensors, direction: int, silu: bool) -> tuple[Tensor, Tensor]:
        return ops.conv1d(tensors, direction, silu)

    def s4d(self, tensors: ops_s4d.S4dTensors, direction: int, merge: int) -> Tensor:
        return ops_s4d.s4d(tensors, direction, merge)
