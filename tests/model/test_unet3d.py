"""The U-Net: its options, its errors, and what it keeps for backward."""

import json
from dataclasses import asdict

import pytest
import torch

from ssmvdm import TemporalConfig, UNet3D, UNet3DConfig
from ssmvdm.temporal.attention import TemporalAttention

GIB = 2**30


def small(layer="bi-s6", **options) -> UNet3D:
    torch.manual_seed(0)
    temporal = TemporalConfig(layer=layer, heads=2, dim_head=8, states=4)
    return UNet3D(UNet3DConfig(base_channels=8, channel_mults=(1, 2), temporal=temporal, **options))


@pytest.mark.parametrize("layer", ["attention", "linear-attention", "s4d", "bi-s4d", "s6", "bi-s6", "none"])
def test_shape_and_gradient_of_every_parameter(layer):
    """All parameters take part: none would stall distributed training as unused."""
    model = small(layer)
    x, t = torch.randn(2, 3, 5, 4, 6), torch.tensor([0, 9])
    y = model(x, t)
    assert y.shape == x.shape
    y.square().mean().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in model.parameters())


@pytest.mark.parametrize(
    "options",
    [
        {"channels": 1, "out_channels": 2},
        {"init_channels": 16, "init_kernel": 3},
        {"time_linears": 4, "norm_groups": 4},
        {"spatial_linear_attention": False, "spatial_heads": 3, "spatial_dim_head": 5},
    ],
    ids=lambda options: ",".join(options),
)
def test_options(options):
    model = small("attention", **options)
    y = model(torch.randn(1, model.config.channels, 3, 4, 4), torch.zeros(1))
    assert y.shape == (1, options.get("out_channels") or model.config.channels, 3, 4, 4)


def test_four_levels_have_ten_temporal_layers():
    model = UNet3D(UNet3DConfig(base_channels=8))
    assert sum(type(module).__name__ == "StateSpaceLayer" for module in model.modules()) == 10


def test_conditioning_and_guidance():
    model = small(cond_dim=5)
    x, t, cond = torch.randn(2, 3, 3, 4, 4), torch.tensor([1, 2]), torch.randn(2, 5)
    conditional = model(x, t, cond)
    dropped = model(x, t, cond, cond_drop=torch.tensor([True, False]))
    null = model(x, t, model.null_condition.expand(2, 5))
    torch.testing.assert_close(dropped[0], null[0])
    torch.testing.assert_close(dropped[1], conditional[1])
    torch.testing.assert_close(model.guided(x, t, cond, 1.0), conditional)
    torch.testing.assert_close(model.guided(x, t, cond, 0.0), null)
    torch.testing.assert_close(model.guided(x, t, cond, 3.0), null + 3 * (conditional - null))


def test_focus_present_makes_the_frames_of_a_sample_independent():
    model = small("attention")
    x, t = torch.randn(2, 3, 4, 4, 4), torch.tensor([1, 2])
    changed = x.clone()
    changed[:, :, 0] += 1
    focus = torch.tensor([True, False])
    # GroupNorm pools over frames, so the network as a whole mixes them even so: look at one temporal block.
    (y, z) = (model.down[0].temporal(model.input_conv(v), focus_present=focus) for v in (x, changed))
    moved = (y - z).abs().amax(dim=(1, 3, 4)) > 0  # (b, f)
    assert moved.tolist() == [[True, False, False, False], [True] * 4]
    masks = {}
    for name, module in model.named_modules():
        if isinstance(module, TemporalAttention):
            module.register_forward_pre_hook(
                lambda _, args, kwargs, name=name: masks.update({name: kwargs.get("focus_present")}), with_kwargs=True
            )
    model(x, t, focus_present=focus)
    assert len(masks) == 6 and [name for name, mask in masks.items() if mask is None] == ["input_temporal.layer"]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_dtypes(dtype):
    model = small().to(dtype)
    y = model(torch.randn(1, 3, 4, 4, 4, dtype=dtype), torch.tensor([7]))
    assert y.dtype == dtype and y.isfinite().all()


GOOD = {"x": (2, 3, 3, 4, 4), "t": (2,), "cond": (2, 5)}


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"x": torch.zeros(2, 4, 3, 4, 4)}, r"x must be \(b, 3, f, h, w\), no size 0, got \(2, 4, 3, 4, 4\)"),
        ({"x": torch.zeros(3, 3, 4, 4)}, "x must be"),
        ({"x": torch.zeros(2, 3, 3, 4, 5)}, r"height and width of x must be multiples of 2, got \(4, 5\)"),
        ({"x": torch.zeros(())}, r"x must be \(b, 3, f, h, w\), no size 0, got \(\)"),
        *(({"x": torch.zeros(2, 3, 3, 4, 4).narrow(axis, 0, 0)}, "x must be .* no size 0") for axis in range(5)),
        ({"x": None}, "x must be a tensor, got NoneType"),
        ({"x": torch.zeros(2, 3, 3, 4, 4, dtype=torch.long)}, "x must be torch.float32, .* got torch.int64"),
        ({"x": torch.zeros(2, 3, 3, 4, 4, dtype=torch.double)}, "x must be torch.float32, .* got torch.float64"),
        ({"x": torch.zeros(2, 3, 3, 4, 4, device="meta")}, "must be on meta, as x is, got cpu"),
        (
            {name: torch.zeros(shape, device="meta") for name, shape in GOOD.items()},
            "x must be on cpu, as the network is, got meta",
        ),
        ({"t": 3}, "t must be a tensor, got int"),
        ({"t": torch.zeros(2, device="meta")}, "t must be on cpu, as x is, got meta"),
        ({"t": torch.zeros(2, dtype=torch.complex64)}, "t must be integer or float, got torch.complex64"),
        ({"t": torch.zeros(3)}, r"t must be \(2,\)"),
        ({"cond": [0.0]}, "cond must be a tensor, got list"),
        ({"cond": None}, r"cond must be \(2, 5\), got none"),
        ({"cond": torch.zeros(2, 4)}, r"cond must be \(2, 5\), got \(2, 4\)"),
        ({"cond_drop": torch.zeros(2)}, r"cond_drop must be \(2,\) bool, got \(2,\) torch.float32"),
        ({"focus_present": torch.zeros(2, dtype=torch.bool)}, "focus_present needs temporal layer 'attention'"),
    ],
)
def test_input_errors(arguments, message):
    model = small(cond_dim=5)
    good = {name: torch.zeros(shape) for name, shape in GOOD.items()}
    with pytest.raises(ValueError, match=message):
        model(**(good | arguments))


def test_autocast_takes_what_it_casts():
    model, x, t = small(), torch.zeros(1, 3, 2, 4, 4), torch.zeros(1)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(model(x.bfloat16(), t), model(x, t))
        with pytest.raises(ValueError, match=r"x must be torch.float32, .* got torch.float64"):
            model(x.double(), t)


def test_condition_for_an_unconditional_network_is_refused():
    with pytest.raises(ValueError, match="this one has none"):
        small()(torch.zeros(1, 3, 2, 4, 4), torch.zeros(1), torch.zeros(1, 5))


@pytest.mark.parametrize(
    "wrong",
    [
        {"channels": 0}, {"base_channels": 7}, {"channel_mults": ()}, {"channel_mults": (1, 0)}, {"init_kernel": 4},
        {"time_linears": 1}, {"time_linears": 17}, {"channel_mults": (1,) * 17}, {"channel_mults": 3},
        {"channel_mults": (1, "2")}, {"cond_dim": -1}, {"cond_dim": "5"}, {"norm_groups": True},
        {"base_channels": 64.0}, {"base_channels": 10**24}, {"spatial_linear_attention": "no"},
        {"spatial_linear_attention": 0}, {"checkpoint_levels": None}, {"temporal": "bi-s6"},
        {"temporal": {"layer": "bi-s6"}}, {"temporal": None}, {"memory": 1}, {"memory": "small"},
    ],
    ids=str,
)  # fmt: skip
def test_configuration_errors(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        UNet3DConfig(**wrong)
    if wrong.get("temporal") != {"layer": "bi-s6"}:  # which is what JSON has
        with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
            UNet3DConfig.from_dict(json.loads(json.dumps(wrong)))


@pytest.mark.parametrize(
    "wrong",
    [
        {"layer": ["bi-s6"]}, {"layer": None}, {"mixer": {}}, {"heads": "8"}, {"states": 0}, {"linear_dim": 0},
        {"memory": None},
    ],
    ids=str,
)  # fmt: skip
def test_configuration_errors_of_the_temporal_layer(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        TemporalConfig(**wrong)


def test_configuration_survives_json():
    config = UNet3DConfig(base_channels=16, temporal=TemporalConfig(layer="attn", heads=3), cond_dim=4)
    assert UNet3DConfig.from_dict(json.loads(json.dumps(asdict(config)))) == config
    for wrong in ({"basechannels": 16}, {"temporal": {"head": 3}}):
        with pytest.raises(ValueError, match="has no field"):
            UNet3DConfig.from_dict(wrong)


def test_groups_must_divide_widths():
    with pytest.raises(ValueError, match="norm_groups=8 must divide every width, and 12 is one"):
        UNet3DConfig(base_channels=12)


def saved_gib(temporal: TemporalConfig, frames: int, memory: str) -> float:
    """GiB of distinct storages handed to autograd in one forward pass of the paper's network, parameters excluded."""
    with torch.device("meta"):
        model = UNet3D(UNet3DConfig(base_channels=112, temporal=temporal, memory=memory))
        x, t = torch.empty(1, 3, frames, 32, 32), torch.empty(1, dtype=torch.long)
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    saved = {}  # by storage, which is kept alive so that its identity stays its own

    def pack(tensor):
        saved[tensor.untyped_storage()._cdata] = tensor.untyped_storage()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        model(x, t)
    return sum(storage.nbytes() for key, storage in saved.items() if key not in parameters) / GIB


@pytest.mark.parametrize(
    ("layer", "frames", "published"),
    [
        ("none", 64, 3.51),
        ("none", 256, 14.05),
        ("attention", 16, 1.91),
        ("attention", 64, 8.83),
        ("attention", 256, 54.61),
        ("linear-attention", 64, 8.82),
        ("linear-attention", 256, 32.87),
    ],
)
def test_bytes_saved_by_plain_autograd_are_those_of_the_published_network(layer, frames, published):
    """To half a percent: the published figures are rounded to a hundredth, and small tensors differ."""
    temporal = TemporalConfig(layer=layer, heads=14, attention_backend="einsum")
    assert saved_gib(temporal, frames, "fast") == pytest.approx(published, rel=0.005)


@pytest.mark.parametrize("frames", [64, 256])
def test_lean_layers_save_only_their_inputs(frames):
    """Without anything of their norms: mixer "mamba" its input and the output of W_in, four times as wide."""
    pixels_by_width = 2 * 1024 + 256 * 2 + 64 * 4 + 16 * 8 * 2 + 16 * 4 + 64 * 2 + 256 + 1024  # the ten layers
    one_tensor = pixels_by_width * 112 * frames * 4 / GIB
    rest = saved_gib(TemporalConfig(layer="none", heads=14), frames, "lean")
    for layer, mixer, videos in (("bi-s6", "mamba", 5), ("bi-s4d", "mamba", 5), ("s6", "mamba", 5), ("s6", "glu", 1)):
        temporal = TemporalConfig(layer=layer, mixer=mixer, heads=14)
        coefficients = 0.006 if layer == "bi-s4d" else 0.0  # of size (channels, modes), whatever the frames
        assert saved_gib(temporal, frames, "lean") - rest < (videos + 0.01) * one_tensor + coefficients
    fused = [saved_gib(TemporalConfig(layer="attention", heads=14), f, "lean") for f in (frames, 2 * frames)]
    assert fused[1] < 2.01 * fused[0]
