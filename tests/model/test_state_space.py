"""State-space layers: every sequence map under every mixer, against the paper's equations written plainly."""

import math

import pytest
import torch
import torch.nn.functional as F

from ssmvdm import TemporalConfig, convert
from ssmvdm.temporal import build_temporal_layer

from .copies import CopiesOfVideo

LAYERS = ("s4d", "bi-s4d", "s6", "bi-s6")
MIXERS = ("mlp", "glu", "glu-mlp", "gss", "mamba")
every_layer = pytest.mark.parametrize("layer", LAYERS)
every_mixer = pytest.mark.parametrize("mixer", MIXERS)


def build(layer, mixer, channels=6, **options):
    torch.manual_seed(0)
    return build_temporal_layer(channels, TemporalConfig(layer=layer, mixer=mixer, **{"states": 4, **options}))


def gradients(y, weight, layer, x):
    return torch.autograd.grad((y * weight).sum(), [x, *layer.parameters()])


# -- the equations, on sequences (n, channels, frames), with the authors' parameter names and flips in time ------------


def s6(p, name, u):
    rank = p[f"{name}.dt_proj.weight"].shape[1]
    low, B, C = (p[f"{name}.x_proj.weight"] @ u).tensor_split((rank, rank + p[f"{name}.A_log"].shape[1]), dim=1)
    delta = F.softplus(p[f"{name}.dt_proj.weight"] @ low + p[f"{name}.dt_proj.bias"][:, None])
    A = -p[f"{name}.A_log"].exp()
    h, y = 0, []
    for t in range(u.shape[2]):
        h = torch.exp(delta[:, :, t, None] * A) * h + (delta * u)[:, :, t, None] * B[:, None, :, t]
        y.append((h * C[:, None, :, t]).sum(-1))
    return torch.stack(y, dim=-1) + p[f"{name}.D"][:, None] * u


def s4d(p, name, u):
    A = -p[f"{name}.kernel.log_A_real"].exp() + 1j * p[f"{name}.kernel.A_imag"]
    dt = p[f"{name}.kernel.log_dt"].exp()[:, None]
    weight = torch.view_as_complex(p[f"{name}.kernel.C"]) * ((dt * A).exp() - 1) / A
    kernel = [2 * (weight * (dt * A * lag).exp()).sum(1).real for lag in range(u.shape[2])]
    y = [sum(kernel[t - s] * u[:, :, s] for s in range(t + 1)) for t in range(u.shape[2])]
    return torch.stack(y, dim=-1) + p[f"{name}.D"][:, None] * u


def linear(p, name, u):
    y = p[f"{name}.weight"].flatten(1) @ u
    return y + p[f"{name}.bias"][:, None]


def directions(kind, function):
    """[function("", identity)], and for a bidirectional kind also flip(function("_rev", flip)), with the name of S."""
    core = kind.removeprefix("bi-")
    scan = {"s6": s6, "s4d": s4d}[core]
    ways = [("", lambda u: u)]
    if kind.startswith("bi-"):
        ways.append(("_rev", lambda u: u.flip(-1)))
    return [turn(function(lambda p, u, n=core + way: scan(p, n, u), core + way, way, turn)) for way, turn in ways]


def mlp(p, kind, x):
    y = torch.cat(directions(kind, lambda S, core, way, turn: S(p, turn(x))), dim=1)
    return linear(p, "fc2", F.gelu(linear(p, "fc1", F.gelu(y))))


def glu(p, kind, x):
    activation = F.gelu if kind.endswith("s4d") else F.silu

    def one(S, core, way, turn):
        return F.glu(linear(p, f"{core}.output_linear.0", activation(S(p, turn(x)))), dim=1)

    return sum(directions(kind, one))


def glu_mlp(p, kind, x):
    return linear(p, "fc2", F.gelu(linear(p, "fc1", glu(p, kind, x))))


def gss(p, kind, x):
    def one(S, core, way, turn):
        first, second = ("fc_rev1", "fc_rev2") if way else ("fc1", "fc2")
        return linear(p, second, S(p, F.gelu(linear(p, first, turn(x)))))

    product = math.prod(directions(kind, one))
    return linear(p, "fc_out", F.gelu(linear(p, "fc_shortcut", x)) * F.gelu(linear(p, "fc3", product)))


def mamba(p, kind, x):
    inner, z = linear(p, "fc_init", x).chunk(2, dim=1)

    def one(S, core, way, turn):
        weight, bias = p[f"conv{way}.weight"], p[f"conv{way}.bias"]
        padded = F.pad(turn(inner), (weight.shape[-1] - 1, 0))
        return S(p, F.silu(F.conv1d(padded, weight, bias, groups=weight.shape[0]))) * F.silu(turn(z))

    return linear(p, "fc_out", sum(directions(kind, one)))


EQUATIONS = {"mlp": mlp, "glu": glu, "glu-mlp": glu_mlp, "gss": gss, "mamba": mamba}


@pytest.mark.parametrize("memory", ["lean", "fast"])
@every_mixer
@every_layer
def test_equation_of_the_paper(layer, mixer, memory):
    """Output and every gradient, in float64; the default form of S4D is the scan, the equation a convolution."""
    module = build(layer, mixer, linear_dim=7, memory=memory).double()
    with torch.no_grad():
        for parameter in module.parameters():  # away from symmetric initial values
            parameter.add_(0.1 * torch.randn_like(parameter))
    x = torch.randn(2, 6, 9, 2, 1, dtype=torch.float64, requires_grad=True)
    weight = torch.randn_like(x)
    y = module(x)
    sequences = x.permute(0, 3, 4, 1, 2).reshape(4, 6, 9)
    plain = EQUATIONS[mixer](convert.temporal_layer_to_paper(module), layer, sequences)
    plain = plain.reshape(2, 2, 1, 6, 9).permute(0, 3, 4, 1, 2)
    torch.testing.assert_close(y, plain, rtol=1e-10, atol=1e-12)
    for ours, theirs in zip(gradients(y, weight, module, x), gradients(plain, weight, module, x), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-9, atol=1e-11)


@every_mixer
@every_layer
def test_causal_layers_see_the_past_and_bidirectional_ones_both_sides(layer, mixer):
    module = build(layer, mixer).double()
    x = torch.randn(1, 6, 7, 1, 1, dtype=torch.float64, requires_grad=True)
    y = module(x, position_bias=None, focus_present=None)
    for frame in range(7):
        (reach,) = torch.autograd.grad(y[:, :, frame].sum(), x, retain_graph=True)
        seen = (reach.abs().sum(dim=1) > 0).flatten().tolist()
        if layer.startswith("bi-"):
            assert all(seen)
        else:
            assert seen == [source <= frame for source in range(7)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@every_mixer
@every_layer
def test_lean_and_fast_are_the_same_bit_for_bit(layer, mixer, dtype):
    modules = [build(layer, mixer, memory=memory).to(dtype) for memory in ("lean", "fast")]
    x = torch.randn(2, 6, 5, 3, 4, dtype=dtype, requires_grad=True)
    outputs = [module(x) for module in modules]
    assert torch.equal(*outputs)
    assert outputs[0].dtype == dtype and outputs[0].isfinite().all()
    lean, fast = (gradients(y, torch.ones_like(y), module, x) for y, module in zip(outputs, modules, strict=True))
    assert all(torch.equal(a, b) for a, b in zip(lean, fast, strict=True))


@every_mixer
@every_layer
def test_autocast(layer, mixer):
    """bfloat16 where it is cheap, gradients in the parameters' float32, and lean as fast here too."""
    lean, fast = (build(layer, mixer, channels=16, memory=memory) for memory in ("lean", "fast"))
    x = torch.randn(1, 16, 5, 3, 4, requires_grad=True)
    expected = fast(x)
    with torch.autocast("cpu", torch.bfloat16):
        outputs = [lean(x), fast(x)]
    assert torch.equal(*outputs) and outputs[0].dtype == torch.bfloat16
    assert (outputs[0] - expected).norm() < 0.03 * expected.norm()
    weight = torch.randn(x.shape)
    found = [gradients(y, weight, module, x) for y, module in zip(outputs, (lean, fast), strict=True)]
    for one, other, wide in zip(*found, gradients(expected, weight, fast, x), strict=True):
        assert torch.equal(one, other) and one.dtype == torch.float32
        assert (one - wide).norm() < 0.1 * wide.norm()


def saved_videos(module, x):
    """Storages that one forward pass hands to autograd, parameters excluded, in units of x."""
    parameters = {p.untyped_storage()._cdata for p in module.parameters()}
    saved = {}

    def pack(tensor):
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        module(x)
    return sum(s.nbytes() for key, s in saved.items() if key not in parameters) / x.untyped_storage().nbytes()


@pytest.mark.parametrize(
    ("mixer", "videos"), [("mlp", (1, 1)), ("glu", (1, 1)), ("glu-mlp", (1, 1)), ("gss", (5, 6)), ("mamba", (5, 5))]
)
@every_layer
def test_lean_saves_the_input_and_the_first_projection(layer, mixer, videos):
    """videos: of one direction, of two. gss has an input projection per direction, and a gate three times as wide."""
    with torch.device("meta"):
        lean, fast = (build(layer, mixer, channels=32, memory=memory) for memory in ("lean", "fast"))
        x = torch.empty(1, 32, 64, 8, 8, requires_grad=True)
    expected = videos[layer.startswith("bi-")]
    assert saved_videos(lean, x) == pytest.approx(expected, rel=0.01)
    assert saved_videos(fast, x) > 1.3 * expected


@pytest.mark.parametrize("batch", [1, 2])
@every_mixer
@every_layer
def test_the_video_is_neither_permuted_nor_copied(layer, mixer, batch):
    with torch.device("meta"):
        module = build(layer, mixer, channels=32)
        x = torch.empty(batch, 32, 16, 8, 8)
    with CopiesOfVideo(x.numel()) as copies, torch.no_grad():
        y = module(x)
    assert y.stride() == x.stride()
    assert copies.seen == []


def test_the_instrument_sees_a_copied_video():
    with torch.device("meta"):
        attention = build_temporal_layer(32, TemporalConfig(layer="attention"))
        x = torch.empty(1, 32, 16, 8, 8)
    with CopiesOfVideo(x.numel()) as copies, torch.no_grad():
        attention(x)
    assert "clone" in copies.seen


@every_layer
def test_widths(layer):
    """linear_dim is the hidden width of the mixers that have one; None is a multiple of the layer's own width."""
    weights = {mixer: convert.temporal_layer_to_paper(build(layer, mixer, linear_dim=10)) for mixer in MIXERS}
    defaults = {mixer: convert.temporal_layer_to_paper(build(layer, mixer)) for mixer in MIXERS}
    both = 2 if layer.startswith("bi-") else 1
    assert weights["mlp"]["fc1.weight"].shape == (10, 6 * both) and defaults["mlp"]["fc2.weight"].shape == (6, 24)
    assert weights["glu-mlp"]["fc1.weight"].shape == (10, 6) and defaults["glu-mlp"]["fc2.weight"].shape == (6, 24)
    assert weights["gss"]["fc3.weight"].shape == (10, 6) and defaults["gss"]["fc_out.weight"].shape == (6, 18)
    for mixer in ("glu", "mamba"):
        assert {k: v.shape for k, v in weights[mixer].items()} == {k: v.shape for k, v in defaults[mixer].items()}


@pytest.mark.parametrize("mixer", MIXERS)
@pytest.mark.parametrize("layer", ["s6", "bi-s6"])
def test_initial_values_of_s6(layer, mixer):
    """A = -(1 .. states), D = 1, and steps log-uniform between 1e-3 and 1e-1."""
    weights = convert.temporal_layer_to_paper(build(layer, mixer, channels=64))
    for name in ("s6", "s6_rev") if layer == "bi-s6" else ("s6",):
        channels = weights[f"{name}.D"].numel()
        assert channels == (128 if mixer == "mamba" else 64)
        assert torch.equal(weights[f"{name}.D"], torch.ones(channels))
        torch.testing.assert_close(weights[f"{name}.A_log"].exp(), torch.arange(1.0, 5).expand(channels, 4))
        log_dt = F.softplus(weights[f"{name}.dt_proj.bias"]).log()
        assert math.log(0.999e-3) < log_dt.min() < math.log(2e-3) and math.log(5e-2) < log_dt.max() < math.log(1.001e-1)
        rank = weights[f"{name}.dt_proj.weight"].shape[1]
        assert rank == math.ceil(channels / 16)
        assert 0.9 * rank**-0.5 < weights[f"{name}.dt_proj.weight"].abs().max() <= rank**-0.5
