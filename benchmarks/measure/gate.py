"""The correctness gate: no number counts unless what was measured computed the right thing.

A gate is a list of checks, each a value and the bound it has to keep. The bound on a layer is
twice the error that the same mathematics makes when it is run eagerly in float32, plus a few units of rounding of the
largest value for the case that the eager error happens to vanish.
"""

import math
from dataclasses import asdict, dataclass
from functools import partial

import torch
from torch import Tensor, nn

from benchmarks.measure import eager
from ssmvdm.saved import unreached_parameters

CROP = 2  # pixels in height and width of the activation a layer is checked on
EAGER_FACTOR = 2.0
ROUNDING_UNITS = 8.0  # of float32 eps times the largest value
LAYER_ROUNDING_UNITS = 32.0  # a layer's products sum up to 1024 features, whose roundings add up as their square root


@dataclass(frozen=True)
class Check:
    """`value` must be finite and at most `bound`."""

    name: str
    value: float
    bound: float

    @property
    def has_passed(self) -> bool:
        return math.isfinite(self.value) and self.value <= self.bound


@dataclass(frozen=True)
class Gate:
    checks: tuple[Check, ...]

    @property
    def has_passed(self) -> bool:
        return all(check.has_passed for check in self.checks)

    def first_failure(self) -> str:
        """The first failed check in words; empty when all passed."""
        for check in self.checks:
            if not check.has_passed:
                return f"{check.name}: {check.value:.3g}, allowed {check.bound:.3g}"
        return ""

    def as_json(self) -> dict:
        checks = [asdict(check) | {"passed": check.has_passed} for check in self.checks]
        for check in checks:
            check["value"] = check["value"] if math.isfinite(check["value"]) else str(check["value"])
        return {"passed": self.has_passed, "checks": checks}

    def as_row(self) -> dict:
        """What it says, as part of a row of results."""
        status = "ok" if self.has_passed else "gate failed"
        return {"status": status, "detail": self.first_failure(), "gate": self.as_json()}


class CaptureTemporal:
    """While open, notes what every temporal layer of a model is given: the activations as they lie in memory, cut to a
    few pixels (a view: strides and offsets are the network's own)."""

    def __init__(self, model: nn.Module):
        self.layers = [module for module in model.modules() if type(module).__name__ in TEMPORAL_CLASSES]
        self.inputs: dict[nn.Module, tuple[Tensor, Tensor | None]] = {}

    def __enter__(self) -> "CaptureTemporal":
        self._handles = [layer.register_forward_pre_hook(self._note, with_kwargs=True) for layer in self.layers]
        return self

    def __exit__(self, *exception) -> None:
        for handle in self._handles:
            handle.remove()

    def _note(self, layer: nn.Module, arguments: tuple, keywords: dict) -> None:
        x, *rest = arguments
        bias = rest[0] if rest else keywords.get("position_bias")
        self.inputs[layer] = (x.detach()[:1, ..., :CROP, :CROP], None if bias is None else bias.detach())


TEMPORAL_CLASSES = ("TemporalAttention", "TemporalLinearAttention", "StateSpaceLayer")


def layer_checks(inputs: dict[nn.Module, tuple[Tensor, Tensor | None]]) -> list[Check]:
    """Output and input gradient of every captured layer against float64; values and bounds in absolute units."""
    checks = []
    for index, (layer, (x, bias)) in enumerate(inputs.items()):
        weight = torch.randn(x.shape, generator=torch.Generator().manual_seed(index)).to(x.device)
        measured = _output_and_gradient(partial(_call, layer, bias), x, weight)
        plain = [
            _output_and_gradient(partial(_call, partial(eager.temporal_layer, layer), bias), x.to(dtype), weight)
            for dtype in (torch.float64, torch.float32)
        ]
        for name, value, truth, yardstick in zip(("output", "gradient"), measured, *plain, strict=True):
            label = f"{name} of temporal layer {index} ({x.shape[1]} channels)"
            checks.append(layer_check(label, value, truth, yardstick))
    return checks or [Check("temporal layers found and run", math.inf, 0.0)]


@torch.no_grad()
def inference_checks(inputs: dict[nn.Module, tuple[Tensor, Tensor | None]]) -> list[Check]:
    """Output of every captured layer where no gradients are wanted, which may be computed in another way, against
    float64; as `layer_checks`."""
    checks = []
    for index, (layer, (x, bias)) in enumerate(inputs.items()):
        plain = partial(_call, partial(eager.temporal_layer, layer), bias)
        truth, yardstick = (plain(x.to(dtype)) for dtype in (torch.float64, torch.float32))
        label = f"output of temporal layer {index} ({x.shape[1]} channels)"
        checks.append(layer_check(label, _call(layer, bias, x), truth, yardstick))
    return checks or [Check("temporal layers found and run", math.inf, 0.0)]


def layer_check(name: str, value: Tensor, truth: Tensor, yardstick: Tensor) -> Check:
    """The largest error of float32 `value` against that of the eager float32 mathematics, and rounding."""
    eps = torch.finfo(torch.float32).eps
    bound = EAGER_FACTOR * _error(yardstick, truth) + LAYER_ROUNDING_UNITS * eps * truth.abs().max().item()
    return Check(name, _error(value, truth), bound)


def _call(function, bias: Tensor | None, x: Tensor) -> Tensor:
    return function(x) if bias is None else function(x, bias)


def _output_and_gradient(function, x: Tensor, weight: Tensor) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = function(x)
    (gradient,) = torch.autograd.grad(y, x, weight.to(y.dtype))
    return y.detach(), gradient


def _error(value: Tensor, truth: Tensor) -> float:
    return (value.double() - truth.double()).abs().max().item()  # NaN stays NaN


def training_checks(loss: float, model: nn.Module) -> list[Check]:
    """After a backward pass: a finite loss, a gradient for every trainable parameter, and every one of them finite."""
    broken = sum(
        not bool(torch.isfinite(p.grad).all()) for p in model.parameters() if p.requires_grad and p.grad is not None
    )
    return [
        Check("loss", abs(loss), torch.finfo(torch.float32).max),
        Check("parameters without a gradient", float(len(unreached_parameters(model))), 0.0),
        Check("parameters with a gradient that is not finite", float(broken), 0.0),
    ]
