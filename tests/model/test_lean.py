"""The lean formulas: their gradients against finite differences, against plain autograd, and what they keep."""

import json
from dataclasses import asdict, replace

import pytest
import torch
import torch.nn.functional as F
from torch import nn
from torch.autograd import gradcheck

from ssmvdm import TemporalConfig, UNet3D, UNet3DConfig, lean
from ssmvdm.blocks import ChannelNorm, PreNormResidual, ResBlock, SpatialAttention, SpatialLinearAttention
from ssmvdm.compared import LAYERS, Network, layer_named
from ssmvdm.lean import pieces
from ssmvdm.process_memory import GIB
from ssmvdm.saved import network_saved_bytes, saved_bytes
from ssmvdm.temporal import build_temporal_layer

EPS = 1e-5
TEMPORAL = ("attention", "linear-attention", "bi-s6", "s6", "bi-s4d")
LAYOUTS = ("contiguous", "channels-last", "sliced", "frames-first")


@pytest.fixture(params=["whole", "in-pieces"])
def cut(request, monkeypatch):
    """Small videos are one piece; here two frames of four or five pixels are, so that the last piece is shorter."""
    if request.param == "in-pieces":
        monkeypatch.setattr(pieces, "CPU_ELEMENTS", 1)
        monkeypatch.setattr(pieces, "MIN_TOKENS", 8)


def random(*shape, seed=0, dtype=torch.float64):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def lay_out(x, layout):
    if layout == "channels-last":
        return x.contiguous(memory_format=torch.channels_last_3d)
    if layout == "frames-first":
        return x.transpose(1, 2).contiguous().transpose(1, 2)
    if layout == "sliced":
        return torch.stack((x, x), dim=-1)[..., 0]
    return x


def leaves(*shapes, dtype=torch.float64):
    return [random(*shape, seed=1 + i, dtype=dtype).requires_grad_() for i, shape in enumerate(shapes)]


def randomised(module, dtype=torch.float64):
    """The module with every parameter drawn anew: gains of one and shifts of zero would hide a wrong gradient."""
    for i, parameter in enumerate(module.parameters()):
        parameter.data = random(*parameter.shape, seed=i) * (parameter[0].numel() ** -0.5)
    return module.to(dtype)


# -- each formula against finite differences ---------------------------------------------------------------------------


def group_norm_and_conv():
    return randomised(nn.GroupNorm(2, 4)), randomised(nn.Conv3d(4, 3, (1, 3, 3), padding=(0, 1, 1)))


def formula(name, x):
    """(function, arguments) of a lean formula, all arguments leaves."""
    norm, conv = group_norm_and_conv()
    c, b = x.shape[1], x.shape[0]
    if name == "norm_silu":
        return lambda x, *_: lean.norm_silu(x, norm), (x, *norm.parameters())
    if name == "norm_silu_conv":
        modulation = leaves((b, c), (b, c))
        call = lambda x, scale, shift, *_: lean.norm_silu_conv(x, norm, scale, shift, conv)  # noqa: E731
        return call, (x, *modulation, *norm.parameters(), *conv.parameters())
    if name == "unmodulated":
        return lambda x, *_: lean.norm_silu_conv(x, norm, None, None, conv), (x, *norm.parameters(), *conv.parameters())
    if name == "convolve_parts":
        wide = randomised(nn.Conv3d(c + 2, 3, (1, 3, 3), padding=(0, 1, 1)))
        (other,) = leaves((b, 2, *x.shape[2:]))
        return lambda x, other, *_: lean.convolve_parts(wide, (x, other)), (x, other, *wide.parameters())
    if name == "channel_norm":
        return lambda x, gain: lean.channel_norm(x, gain, EPS), (x, *leaves((c,)))
    if name == "norm_project":
        return lambda x, gain, *linear: lean.norm_project(x, gain, EPS, *linear), (x, *leaves((c,), (5, c), (5,)))
    if name == "norm_linear_attention":
        call = lambda x, gain, *w: lean.norm_linear_attention(x, gain, EPS, *w, 2)  # noqa: E731
        return call, (x, *leaves((c,), (12, c), (c, 4), (c,)))
    along = name.removeprefix("norm_heads-")
    return lambda x, gain, weight: lean.norm_heads(x, gain, EPS, weight, along), (x, *leaves((c,), (6, c)))


FORMULAS = (
    "norm_silu", "norm_silu_conv", "unmodulated", "convolve_parts", "channel_norm", "norm_project",
    "norm_heads-frames", "norm_heads-pixels", "norm_linear_attention",
)  # fmt: skip


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", FORMULAS)
def test_gradients_of_every_argument(name, layout, cut):
    x = lay_out(random(2, 4, 3, 2, 2), layout).requires_grad_()
    function, arguments = formula(name, x)
    assert gradcheck(function, arguments)


@pytest.mark.parametrize("name", [name for name in FORMULAS if name != "convolve_parts"])
def test_a_second_derivative_is_refused_in_words(name):
    x = random(1, 4, 3, 2, 2).requires_grad_()
    function, arguments = formula(name, x)
    out = function(*arguments)
    out = out if isinstance(out, torch.Tensor) else out[0]
    (dx,) = torch.autograd.grad(out.square().sum(), x, create_graph=True)
    for argument in arguments:
        with pytest.raises(NotImplementedError, match="has a first derivative only"):
            torch.autograd.grad(dx.sum(), argument, retain_graph=True)
    with pytest.raises(NotImplementedError, match="has a first derivative only"):
        dx.sum().backward()


@pytest.mark.parametrize("name", FORMULAS)
def test_frozen_parameters_and_inputs_get_no_gradient(name):
    x = random(1, 4, 3, 2, 2).requires_grad_()
    function, arguments = formula(name, x)
    for argument in arguments[1:]:
        argument.requires_grad_(False)
    out = function(*arguments)
    sum(t.sum() for t in (out if isinstance(out, tuple) else (out,))).backward()
    assert x.grad.shape == x.shape and all(argument.grad is None for argument in arguments[1:])


# -- the blocks, lean against plain ------------------------------------------------------------------------------------


class WithSkip(nn.Module):
    """A ResBlock of two inputs and an embedding, of which only the first is the test's."""

    def __init__(self, memory):
        super().__init__()
        self.block = ResBlock(16, 8, 5, groups=4, memory=memory)
        self.skip, self.embedding = nn.Parameter(torch.empty(2, 8, 5, 4, 4)), nn.Parameter(torch.empty(2, 5))

    def forward(self, x):
        return self.block(x, self.embedding, self.skip)


def block(name, memory):
    if name == "resnet":
        return ResBlock(8, 8, groups=4, memory=memory)
    if name == "resnet-with-skip":
        return WithSkip(memory)
    if name == "spatial-linear":
        layer = SpatialLinearAttention(8, 2, 6)
    elif name == "spatial":
        layer = SpatialAttention(8, 2, 6)
    elif name == "any-layer":
        layer = nn.Conv3d(8, 8, 1)
    else:
        layer = build_temporal_layer(8, TemporalConfig(layer=name, heads=2, dim_head=6, states=4, memory=memory))
    return PreNormResidual(8, layer, memory)


BLOCKS = ("resnet", "resnet-with-skip", "spatial-linear", "spatial", "any-layer", *TEMPORAL)


def results(name, memory, x, dtype=torch.float64, low=None):
    """Output, gradient of the input and of the parameters."""
    module, x = randomised(block(name, memory), dtype), x.to(dtype).detach().requires_grad_()
    with torch.autocast("cpu", low, enabled=low is not None):
        y = module(x)
    weights = random(*y.shape, seed=3, dtype=y.dtype)
    return y, *torch.autograd.grad(y, (x, *module.parameters()), weights)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", BLOCKS)
def test_lean_blocks_are_the_plain_ones(name, layout, cut):
    x = lay_out(random(2, 8, 5, 4, 4), layout)
    torch.testing.assert_close(results(name, "lean", x), results(name, "fast", x), rtol=1e-9, atol=1e-10)


def test_the_norm_of_a_lean_block_is_the_modules():
    norm, x = randomised(ChannelNorm(8)), random(2, 8, 3, 2, 2)
    torch.testing.assert_close(lean.channel_norm(x, norm.gain, norm.eps), norm(x))
    expected = F.layer_norm(x.movedim(1, -1), (8,), norm.gain, eps=norm.eps).movedim(-1, 1)
    torch.testing.assert_close(norm(x), expected)


@pytest.mark.parametrize("name", BLOCKS)
def test_autocast_is_as_close_to_the_truth_as_plain_autograd_is(name):
    """bfloat16 on the CPU: the same dtypes, and errors against float64 at most twice those of the plain modules."""
    x = random(2, 8, 5, 4, 4)
    truth = results(name, "fast", x)
    found, plain = (results(name, memory, x, torch.float32, torch.bfloat16) for memory in ("lean", "fast"))
    for one, other, exact in zip(found, plain, truth, strict=True):
        assert one.dtype == other.dtype
        scale = exact.abs().max()
        errors = [((value.double() - exact).abs().max() / scale).item() for value in (one, other)]
        assert errors[0] <= 2 * errors[1] + 2**-8


@pytest.mark.parametrize("name", BLOCKS)
def test_low_precision_parameters(name):
    y, *gradients = results(name, "lean", random(2, 8, 5, 4, 4), torch.bfloat16)
    exact = results(name, "fast", random(2, 8, 5, 4, 4))
    assert all(value.dtype == torch.bfloat16 for value in (y, *gradients))
    torch.testing.assert_close(y.double(), exact[0], rtol=0.05, atol=0.05 * exact[0].abs().max().item())


@pytest.mark.parametrize("name", ["spatial-linear", "bi-s6"])  # all formulas; the others have layers of torch's too
def test_backward_under_autocast_is_backward_outside(name):
    module, x = randomised(block(name, "lean"), torch.float32), random(2, 8, 5, 4, 4, dtype=torch.float32)
    gradients = []
    for is_inside in (False, True):
        loss = module(x).square().sum()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_inside):
            gradients.append(torch.autograd.grad(loss, tuple(module.parameters())))
    torch.testing.assert_close(*gradients, rtol=0, atol=0)


# -- what is kept ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "tensors"), [("resnet", 3), ("spatial-linear", 1), ("any-layer", 2), ("bi-s6", 5)], ids=lambda v: str(v)
)
def test_blocks_keep_their_input_and_what_the_products_return(name, tensors):
    """In tensors of the input's size, with room for the groups' statistics."""
    module, x = block(name, "lean"), torch.randn(2, 8, 16, 8, 8, requires_grad=True)
    kept, _ = saved_bytes(lambda: module(x), list(module.parameters()))
    size = x.numel() * x.element_size()
    assert tensors * size <= kept < (tensors + 0.01) * size
    module = block(name, "fast")
    assert saved_bytes(lambda: module(x), list(module.parameters()))[0] > 1.5 * kept


@pytest.mark.parametrize(("frames", "limit_gib"), [(16, 0.42), (256, 6.0)])
def test_the_papers_network_keeps_a_fifth_of_the_authors(frames, limit_gib):
    kept = network_saved_bytes(Network.paper(), layer_named("bi-s6"), frames)["saved_bytes"] / GIB
    assert kept < limit_gib


@pytest.mark.parametrize("layer", LAYERS, ids=lambda layer: layer.name)
def test_every_network_profits_and_memory_is_linear_in_frames(layer):
    small = Network.small(base_channels=16, size=16)

    def kept(frames, memory):
        return network_saved_bytes(replace(small, memory=memory), layer, frames)["saved_bytes"]

    short, middle, long = (kept(frames, "lean") for frames in (16, 32, 48))
    assert long < 0.8 * kept(48, "fast")
    if layer.name != "attention-einsum":  # whose scores are quadratic
        assert long - middle == pytest.approx(middle - short, rel=1e-3)


# -- the whole network -------------------------------------------------------------------------------------------------


def network(layer, dtype=torch.float64, **options):
    torch.manual_seed(0)
    temporal = TemporalConfig(layer=layer, heads=2, dim_head=8, states=4)
    return UNet3D(UNet3DConfig(base_channels=8, channel_mults=(1, 2), temporal=temporal, **options)).to(dtype)


def network_results(model):
    y = model(random(2, 3, 5, 4, 6), torch.tensor([3, 90]))
    return y, *torch.autograd.grad((y * random(*y.shape, seed=2)).sum(), tuple(model.parameters()))


@pytest.mark.parametrize("layer", [*TEMPORAL, "none"])
def test_lean_and_fast_networks_agree(layer):
    found, expected = (network_results(network(layer, memory=memory)) for memory in ("lean", "fast"))
    torch.testing.assert_close(found, expected, rtol=1e-7, atol=1e-9)


@pytest.mark.parametrize("memory", ["lean", "fast"])
def test_checkpointed_levels_give_the_same_bits_and_keep_less(memory):
    model = network("bi-s6", memory=memory, checkpoint_levels=True)
    plain = network("bi-s6", memory=memory)
    for found, expected in zip(network_results(model), network_results(plain), strict=True):
        assert torch.equal(found, expected)
    x, t = random(1, 3, 5, 8, 8), torch.tensor([3])
    less, more = (saved_bytes(lambda m=m: m(x, t), list(m.parameters()))[0] for m in (model, plain))
    assert less < (0.7 if memory == "lean" else 0.4) * more


def test_one_switch_for_the_whole_network():
    assert UNet3DConfig().memory == UNet3DConfig().temporal.memory == "lean"
    for config in (UNet3DConfig(memory="fast"), UNet3DConfig(temporal=TemporalConfig(memory="fast"))):
        assert config.memory == config.temporal.memory == "fast"
        assert UNet3DConfig.from_dict(json.loads(json.dumps(asdict(config)))) == config
    modes = {module.memory for module in network("bi-s6", memory="fast").modules() if hasattr(module, "memory")}
    assert modes == {"fast"}
    for wrong in ({"memory": "small"}, {"checkpoint_levels": 1}):
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            UNet3DConfig(**wrong)
