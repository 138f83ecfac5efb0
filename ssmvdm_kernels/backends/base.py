"""What a backend is: its name, the reasons why it cannot run, and the computations."""

from __future__ import annotations

from abc import ABC, abstractmethod

import torch
from torch import Tensor

from ..operators import Operators
from ..ops import ConvTensors, ScanTensors
from ..ops_s4d import S4dTensors


class Backend(ABC):
    """One implementation of the operators.

    `missing` and `obstacles` say in full sentences why it cannot run. The same sentences decide the automatic choice,
    make the text of `explain` and stand in the error when a user names a backend that cannot take the call. They are
    asked at every call, and traced by torch.compile, so they compare a few facts and nothing more.
    """

    name: str
    operators: Operators | None = None  # what it computes with, or None for plain tensor code

    @abstractmethod
    def missing(self) -> str | None:
        """Why this backend runs nothing on this machine, with the remedy, or None if it runs."""

    @abstractmethod
    def obstacles(self, device: torch.device, dtype: torch.dtype) -> list[str]:
        """Why it cannot take a call whose sequences have this device and dtype; an empty list if it can."""

    def is_automatic(self, device: torch.device) -> bool:
        """Whether backend="auto" considers it for this device, where nothing else stands in its way."""
        return True

    @abstractmethod
    def scan(
        self, tensors: ScanTensors, direction: int, merge: int, delta_softplus: bool, return_last_state: bool
    ) -> tuple[Tensor, Tensor]:
        """The contract of the operator `scan_forward`, differentiable."""

    @abstractmethod
    def conv1d(self, tensors: ConvTensors, direction: int, silu: bool) -> tuple[Tensor, Tensor]:
        """The contract of the operator `conv1d_forward`, differentiable."""

    @abstractmethod
    def s4d(self, tensors: S4dTensors, direction: int, merge: int) -> Tensor:
        """The contract of the operator `s4d_forward`, differentiable."""


class KernelBackend(Backend):
    """A backend that has kernels for a set of operators."""

    operators: Operators

    def scan(
        self, tensors: ScanTensors, direction: int, merge: int, delta_softplus: bool, return_last_state: bool
    ) -> tuple[Tensor, Tensor]:
        return self.operators.scan(tensors, direction, merge, delta_softplus, return_last_state)

    def conv1d(self, tensors: ConvTensors, direction: int, silu: bool) -> tuple[Tensor, Tensor]:
        return self.operators.conv1d(tensors, direction, silu)

    def s4d(self, tensors: S4dTensors, direction: int, merge: int) -> Tensor:
        return self.operators.s4d(tensors, direction, merge)
