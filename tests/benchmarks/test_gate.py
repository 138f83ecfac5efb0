"""The gate lets the right through and stops the wrong; the plain layers it compares with are themselves right."""

import math

import pytest
import torch

from benchmarks.measure import eager
from benchmarks.measure.gate import CaptureTemporal, Check, Gate, layer_checks, training_checks
from ssmvdm import GaussianDiffusion
from ssmvdm.compared import LAYER_NAMES, Network, all_layer_names, layer_named
from ssmvdm.temporal.mixers import StateSpaceLayer
from ssmvdm_kernels import selective_scan

SMALL = Network(base_channels=8, size=8, channel_mults=(1, 2))


def captured(name):
    torch.manual_seed(0)
    model = SMALL.build(layer_named(name))
    x = torch.randn(1, 3, 5, 8, 8)
    with CaptureTemporal(model) as capture:
        loss = GaussianDiffusion().training_loss(model, x, torch.tensor([3]), torch.randn_like(x))
    loss.backward()
    return model, capture.inputs, loss.item()


@pytest.mark.parametrize("name", all_layer_names())
def test_an_honest_network_passes(name):
    model, inputs, loss = captured(name)
    assert len(inputs) == 6  # input, two down, middle, two up
    gate = Gate((*layer_checks(inputs), *training_checks(loss, model)))
    assert gate.has_passed, gate.first_failure()
    assert gate.first_failure() == ""


@pytest.mark.parametrize("name", LAYER_NAMES)
@pytest.mark.parametrize("error", [1e-4, math.nan])
def test_a_layer_that_computes_something_else_fails(name, error):
    _, inputs, _ = captured(name)
    layer = next(iter(inputs))
    layer.register_forward_hook(lambda module, arguments, y: y * (1.0 + error))
    gate = Gate(tuple(layer_checks(inputs)))
    assert not gate.has_passed
    assert "temporal layer 0" in gate.first_failure()


@pytest.mark.parametrize("name", LAYER_NAMES)
def test_a_layer_with_a_wrong_gradient_fails(name):
    _, inputs, _ = captured(name)
    layer = next(iter(inputs))
    layer.register_forward_hook(lambda module, arguments, y: y + (1e-3 * (y - y.detach())))
    assert "gradient" in Gate(tuple(layer_checks(inputs))).first_failure()


def test_no_temporal_layer_at_all_fails():
    assert not Gate(tuple(layer_checks({}))).has_passed


def test_a_loss_or_gradient_that_is_not_finite_fails():
    model, _, loss = captured("linear-attention")
    assert Gate(tuple(training_checks(loss, model))).has_passed
    assert "loss" in Gate(tuple(training_checks(math.inf, model))).first_failure()
    parameter = next(model.parameters())
    parameter.grad[0] = math.nan
    assert "not finite" in Gate(tuple(training_checks(loss, model))).first_failure()
    parameter.grad = None
    assert "without a gradient" in Gate(tuple(training_checks(loss, model))).first_failure()


def test_a_nan_is_never_a_pass_and_goes_to_json():
    check = Check("x", math.nan, math.inf)
    assert not check.has_passed
    assert Gate((check,)).as_json()["checks"][0]["value"] == "nan"


def test_the_eager_scan_agrees_with_the_specification():
    generator = torch.Generator().manual_seed(0)
    n, d, length, states = 3, 4, 7, 5

    def normal(*shape):
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    u, delta, z = normal(n, d, length), normal(n, d, length), normal(n, d, length)
    A, B, C = -normal(d, states).exp(), normal(n, states, length), normal(n, states, length)
    D, bias = normal(d), normal(d)
    ours = eager.selective_scan(u, delta, A, B, C, D, z, bias, True)
    truth = selective_scan(u, delta, A, B, C, D, z, bias, True, backend="reference")
    assert (ours - truth).abs().max() <= 64 * torch.finfo(torch.float64).eps * truth.abs().max()


def test_an_unknown_layer_is_refused():
    with pytest.raises(TypeError, match="no plain form of temporal layer Linear"):
        eager.temporal_layer(torch.nn.Linear(2, 2), torch.zeros(1, 2, 1, 1, 1))


def test_an_unknown_mixer_is_refused():
    layer = StateSpaceLayer(torch.nn.Linear(2, 2))
    with pytest.raises(TypeError, match="no plain form of mixer Linear"):
        eager.temporal_layer(layer, torch.zeros(1, 2, 1, 1, 1))
