"""S4D: its two forms, its initial values, its sizes."""

import math

import pytest
import torch

from ssmvdm import TemporalConfig
from ssmvdm.temporal import build_temporal_layer
from ssmvdm.temporal.s4d import S4D
from ssmvdm_kernels.operators import COMPILED

MERGES = ("sum", "cat", "none")


def pair_of_forms(directions, states=6):
    """The same map as a scan and as a convolution, in float64."""
    torch.manual_seed(0)
    scan = S4D(5, states, directions, "scan").double()
    fft = S4D(5, states, directions, "fft").double()
    fft.load_state_dict(scan.state_dict())
    return scan, fft


def inputs(*shape, count=3):
    torch.manual_seed(1)
    return [torch.randn(*shape, dtype=torch.float64, requires_grad=True) for _ in range(count)]


@pytest.mark.parametrize("shape", [(2, 5, 1, 2, 3), (1, 5, 2), (2, 5, 33, 2, 1)], ids=str)
@pytest.mark.parametrize("merge", MERGES)
@pytest.mark.parametrize("gated", [False, True])
@pytest.mark.parametrize(("directions", "own_input"), [(1, False), (2, False), (2, True)])
def test_scan_equals_fourier_transform(shape, merge, gated, directions, own_input):
    """Output and gradients of inputs and parameters, float64."""
    u, u_b, z = inputs(*shape)
    forms = pair_of_forms(directions)
    results = []
    for form in forms:
        y = form(u, u_b if own_input else None, z=z if gated else None, merge=merge)
        pieces = y if isinstance(y, tuple) else (y,)
        assert isinstance(y, tuple) == (merge == "none")
        torch.manual_seed(2)
        loss = sum((piece * torch.randn(piece.shape, dtype=torch.float64)).sum() for piece in pieces)
        wanted = [u, *([u_b] if own_input else []), *([z] if gated else []), *form.parameters()]
        results.append([*pieces, *torch.autograd.grad(loss, wanted)])
    for scan, fft in zip(*results, strict=True):
        torch.testing.assert_close(scan, fft, rtol=1e-9, atol=1e-11)


@pytest.mark.parametrize("mixer", ["mlp", "glu", "glu-mlp", "gss", "mamba"])
@pytest.mark.parametrize("layer", ["s4d", "bi-s4d"])
def test_forms_of_a_layer_agree(layer, mixer):
    forms = []
    for form in ("scan", "fft"):
        torch.manual_seed(0)
        config = TemporalConfig(layer=layer, mixer=mixer, states=8, s4d_form=form)
        forms.append(build_temporal_layer(6, config).double())
    (x,) = inputs(1, 6, 21, 2, 2, count=1)
    results = [(y := form(x), torch.autograd.grad(y.square().sum(), x)[0]) for form in forms]
    assert [m.form for form in forms for m in form.modules() if isinstance(m, S4D)] == ["scan", "fft"]
    torch.testing.assert_close(*results, rtol=1e-9, atol=1e-11)


def test_kernel_is_the_impulse_response():
    for form in pair_of_forms(2):
        impulse = torch.zeros(1, 5, 11, dtype=torch.float64)
        impulse[:, :, 5] = 1
        ahead, back = form(impulse, merge="none")
        cases = ((ahead, form.causal, range(5, 11)), (back, form.anticausal, range(5, -1, -1)))
        for response, direction, times in cases:
            expected = direction.kernel(6)
            expected = torch.cat((expected[:, :1] + direction.D[:, None], expected[:, 1:]), dim=1)
            torch.testing.assert_close(response[0, :, list(times)], expected)
        assert ahead[:, :, :5].abs().max() < 1e-12 and back[:, :, 6:].abs().max() < 1e-12


def test_kernel_by_its_definition():
    direction = pair_of_forms(1)[0].causal
    kernel = direction.kernel(7)
    assert kernel.shape == (5, 7)
    for channel, lag in ((0, 0), (3, 2), (4, 6)):
        dt = direction.log_dt[channel].exp().item()
        expected = 0
        for n in range(3):
            A = complex(-math.exp(direction.log_A_real[channel, n].item()), direction.A_imag[channel, n].item())
            C = complex(*direction.C[channel, n].tolist())
            step = torch.exp(torch.tensor(dt * A, dtype=torch.complex128)).item()
            expected += 2 * (C * (step - 1) / A * step**lag).real
        assert kernel[channel, lag].item() == pytest.approx(expected, rel=1e-12)


def test_small_steps_are_not_lost_to_cancellation():
    """exp(dt A) - 1 with dt = 1e-6, where a difference in float32 would keep one digit."""
    direction = S4D(4, 2, 1).causal
    with torch.no_grad():
        direction.log_dt.fill_(math.log(1e-6))
        direction.C.copy_(torch.tensor([1.0, 0.0]))
    _, weight = direction.discretised()
    torch.testing.assert_close(weight.real, torch.full((4, 1), 1e-6), rtol=1e-5, atol=0)


def test_initial_values():
    torch.manual_seed(0)
    direction = S4D(4000, 8, 1).causal
    log_dt = direction.log_dt
    assert log_dt.min() >= math.log(1e-3) and log_dt.max() <= math.log(1e-1)
    assert log_dt.mean().item() == pytest.approx((math.log(1e-3) + math.log(1e-1)) / 2, abs=0.1)
    torch.testing.assert_close(direction.log_A_real.exp(), torch.full((4000, 4), 0.5))
    torch.testing.assert_close(direction.A_imag, math.pi * torch.arange(4.0).expand(4000, 4))
    assert direction.C.square().sum(-1).mean().item() == pytest.approx(1, abs=0.05)
    assert direction.D.mean().item() == pytest.approx(0, abs=0.1)
    assert direction.D.std().item() == pytest.approx(1, abs=0.1)


@pytest.mark.parametrize("form", ["scan", "fft"])
def test_bfloat16_keeps_its_parameters_arithmetic_wide(form):
    torch.manual_seed(0)
    config = TemporalConfig(layer="bi-s4d", states=4, s4d_form=form)
    layer = build_temporal_layer(6, config).bfloat16()
    x = torch.randn(1, 6, 9, 2, 2).bfloat16()
    y = layer(x)
    wide = layer.float()(x.float())  # the same rounded parameters
    assert y.dtype == torch.bfloat16
    assert (y.float() - wide).norm() < 2e-2 * wide.norm()


class CountScans(torch.utils._python_dispatch.TorchDispatchMode):
    """Calls of the S4D operators in its scope."""

    def __init__(self):
        super().__init__()
        self.calls = []

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        if function in (COMPILED.s4d_forward, COMPILED.s4d_backward):
            self.calls.append(function)
        return function(*arguments, **(options or {}))


@pytest.mark.parametrize("layer", ["s4d", "bi-s4d"])
def test_the_lean_mixer_runs_no_second_forward_scan(layer):
    with torch.device("meta"):
        module = build_temporal_layer(8, TemporalConfig(layer=layer, memory="lean"))
        x = torch.empty(1, 8, 3, 2, 2, requires_grad=True)
    with CountScans() as scans:
        module(x).sum().backward()
    assert scans.calls == [COMPILED.s4d_forward, COMPILED.s4d_backward]
