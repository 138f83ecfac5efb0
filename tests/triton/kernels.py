"""The kernels as a real call launches them, one call per kernel that is compiled ahead of time."""

from __future__ import annotations

from collections.abc import Callable

import torch

from ssmvdm_kernels import ops
from ssmvdm_kernels.ops_s4d import S4dTensors
from ssmvdm_kernels.triton_kernels import conv, s4d, scan_backward, scan_forward
from tests.kernels.cases import Case

KERNELS = (
    scan_forward.forward_kernel,
    scan_backward.backward_kernel,
    conv.forward_kernel,
    conv.backward_kernel,
    s4d.forward_kernel,
    s4d.backward_kernel,
)
LAYOUTS = ("channels", "lanes", "length")  # the inner axis


def scan_case(layout: str) -> Case:
    """What the network calls: 16 states, bfloat16, everything but u separate for the two directions."""
    return Case(
        channels=224, length=16, states=16, batch=1, lanes=() if layout == "length" else (64,), layout=layout,
        dtype=torch.bfloat16, separate="scan",
    )  # fmt: skip


def forward(layout: str) -> None:
    scan_forward.scan_forward(*ops.ScanTensors(**scan_case(layout).inputs()), ops.BOTH, ops.SUM, True, False)


def backward(layout: str) -> None:
    case = scan_case(layout)
    tensors, everything = ops.ScanTensors(**case.inputs()), ops.NEEDS_Y - 1
    scan_backward.scan_backward(case.output_gradients()[0], None, *tensors, ops.BOTH, ops.SUM, True, everything)


def filters(layout: str) -> tuple:
    x = scan_case(layout).inputs()["u"]
    return x, ops.ConvTensors(x, torch.zeros(224, 4), torch.zeros(224), torch.zeros(224, 4), torch.zeros(224))


def convolution(layout: str) -> None:
    conv.conv1d_forward(*filters(layout)[1], ops.BOTH, True)


def convolution_backward(layout: str) -> None:
    x, tensors = filters(layout)
    conv.conv1d_backward(x, x, *tensors, ops.BOTH, True, 0b11111)


def s4d_tensors(layout: str) -> S4dTensors:
    u, pairs = scan_case(layout).inputs()["u"], torch.zeros(224, 64, 2)
    return S4dTensors(u, pairs, pairs, torch.zeros(224), u, None, pairs, pairs, torch.zeros(224))


def s4d_forward(layout: str) -> None:
    s4d.s4d_forward(*s4d_tensors(layout), ops.BOTH, ops.SUM)


def s4d_backward(layout: str) -> None:
    tensors = s4d_tensors(layout)
    s4d.s4d_backward(tensors.u, *tensors, ops.BOTH, ops.SUM, (1 << len(tensors)) - 1)


CALLS: dict[str, Callable[[str], None]] = {
    "scan forward": forward,
    "scan backward": backward,
    "convolution forward": convolution,
    "convolution backward": convolution_backward,
    "s4d forward": s4d_forward,
    "s4d backward": s4d_backward,
}
