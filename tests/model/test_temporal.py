"""Temporal layers, each against a plain second derivation."""

import math

import pytest
import torch

from ssmvdm import TemporalConfig
from ssmvdm.temporal import attention, available_temporal_layers, build_temporal_layer
from ssmvdm.temporal.position import RelativePositionBias, apply_rotary, rotary_frequencies

NAMES = available_temporal_layers()
BACKENDS = ["einsum", "sdpa"]


def attention_inputs(batch, heads, frames, dim_head, dtype=torch.float64):
    torch.manual_seed(0)
    shape = (batch, heads, frames, dim_head)
    q, k, v = (torch.randn(shape, dtype=dtype, requires_grad=True) for _ in range(3))
    return q, k, v, torch.randn(heads, frames, frames, dtype=dtype, requires_grad=True)


def config_of(name: str, **options) -> TemporalConfig:
    """The configuration of "layer" or "layer/mixer"."""
    layer, _, mixer = name.partition("/")
    return TemporalConfig(layer=layer, mixer=mixer or "mamba", heads=2, dim_head=8, states=4, **options)


def test_every_layer_of_the_paper_exists():
    mixed = {f"{layer}/{mixer}" for layer in ("s4d", "bi-s4d", "s6", "bi-s6")
             for mixer in ("mlp", "glu", "glu-mlp", "gss", "mamba")}  # fmt: skip
    assert set(NAMES) == mixed | {"attention", "linear-attention", "none"}


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("shape", [(2, 6, 5, 3, 4), (1, 6, 1, 1, 1), (2, 6, 17, 1, 2)], ids=str)
def test_every_layer_keeps_the_shape_and_pixels_apart(name, shape):
    torch.manual_seed(0)
    layer = build_temporal_layer(6, config_of(name)).double()
    x = torch.randn(shape, dtype=torch.float64)
    y = layer(x)
    assert y.shape == x.shape
    changed = x.clone()
    changed[-1, :, :, -1, -1] += 1
    moved = (layer(changed) - y).abs().amax(dim=(1, 2)) > 0  # (b, h, w)
    assert moved[-1, -1, -1] and moved.sum() == 1


@pytest.mark.parametrize("name", NAMES)
def test_every_layer_goes_with_in_place_residuals_and_torch_func(name):
    torch.manual_seed(0)
    layer = build_temporal_layer(6, config_of(name))
    x = torch.randn(2, 6, 5, 3, 4, requires_grad=True)
    y = layer(x * 1)
    y += x
    (wanted,) = torch.autograd.grad(y.square().sum(), x)
    found = torch.func.grad(lambda x: (layer(x) + x).square().sum())(x.detach())
    torch.testing.assert_close(found, wanted)


def test_names_aliases_and_errors():
    assert TemporalConfig(layer="attn") == TemporalConfig(layer="attention")
    assert TemporalConfig(layer="l-attn").layer == "linear-attention"
    with pytest.raises(
        ValueError, match=f"no temporal layer 'gru'; there are: {', '.join(available_temporal_layers())}"
    ):
        TemporalConfig(layer="gru")
    with pytest.raises(ValueError, match=r"'bi-s6' with mixer 'conv'; there are: .*bi-s6/mamba"):
        TemporalConfig(layer="bi-s6", mixer="conv")


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"heads": 0}, "heads must be a positive integer, got 0"),
        ({"states": -1}, "states must be a positive integer, got -1"),
        ({"linear_dim": 2.5}, "linear_dim must be a whole number of .* or None, got 2.5"),
        ({"dim_head": 7}, "dim_head must be even .*, got 7"),
        ({"memory": "big"}, "memory must be one of lean, fast, got 'big'"),
        ({"s4d_form": "conv"}, "s4d_form must be one of scan, fft, got 'conv'"),
        ({"attention_backend": "flash"}, "attention_backend must be one of einsum, sdpa, got 'flash'"),
        ({"layer": "s4d", "states": 3}, "states must be even for 's4d' .*, got 3"),
        ({"layer": "s4d", "mixer": "vim"}, "'s4d' with mixer 'vim'; there are: .*s4d/mamba"),
    ],
)
def test_configuration_errors(wrong, message):
    with pytest.raises(ValueError, match=message):
        TemporalConfig(**wrong)


def test_relative_position_bucket():
    """The rule in words: past 0..7 exact, then logarithmic to distance 32, the future in the upper half."""
    bias = RelativePositionBias(heads=2)
    for lag in range(-300, 300):
        distance = abs(lag)
        # Distances 16 and 32 fall on a boundary of buckets, where the logarithm is exact.
        far = 8 + math.floor(round(8 * math.log(max(distance, 8) / 8) / math.log(4), 9))
        expected = (distance if distance < 8 else min(15, far)) + (16 if lag < 0 else 0)
        assert bias.bucket(torch.tensor(lag)).item() == expected, lag
    table = bias(5)  # (heads, query, key)
    assert torch.equal(table[1, 4, 1], bias.table.weight[3, 1])  # three frames back
    assert torch.equal(table[0, 1, 3], bias.table.weight[18, 0])  # two frames ahead


def test_rotary_is_a_rotation_by_the_distance_in_time():
    torch.manual_seed(0)
    q, k = torch.randn(2, 40, dtype=torch.float64)  # 32 features turn, 8 pass
    turned_q, turned_k = (apply_rotary(x.expand(9, 40)) for x in (q, k))
    scores = turned_q @ turned_k.T
    for lag in range(-8, 9):
        diagonal = scores.diagonal(lag)
        torch.testing.assert_close(diagonal, diagonal[:1].expand_as(diagonal))
    angle = 3 * rotary_frequencies(32, dtype=torch.float64)
    pairs = torch.view_as_complex(q[:32].view(16, 2)) * torch.polar(torch.ones_like(angle), angle)
    torch.testing.assert_close(turned_q[3, :32], torch.view_as_real(pairs).flatten())
    assert torch.equal(turned_q[:, 32:], q[32:].expand(9, 8))


@pytest.mark.parametrize("frames", [2, 1024, 65536])
def test_rotary_angles_keep_their_digits_in_long_videos(frames):
    unit = torch.tensor([1.0, 0.0]).repeat(16).expand(frames, 32)
    error = apply_rotary(unit).double() - apply_rotary(unit.double())
    assert error.abs().max() <= torch.finfo(torch.float32).eps / 2  # nothing but the rounding of cosines and sines


def test_attention_backends_agree_and_the_bias_gradient_is_right(monkeypatch):
    monkeypatch.setattr(attention, "SCORES_AT_A_TIME", 2 * 2 * 5 * 5)  # two of five samples at a time
    inputs = attention_inputs(5, 2, 5, 4)
    fused, plain = (attention.attend(*inputs, backend=backend) for backend in ("sdpa", "einsum"))
    torch.testing.assert_close(fused, plain)
    weights = torch.randn_like(plain)
    gradients = [torch.autograd.grad((y * weights).sum(), inputs) for y in (fused, plain)]
    torch.testing.assert_close(*gradients)
    assert torch.autograd.gradcheck(lambda *args: attention.attend(*args, backend="sdpa"), inputs)


@pytest.mark.parametrize("bias_is_learned", [True, False])
def test_batches_beyond_a_launch_are_split(monkeypatch, bias_is_learned):
    q, k, v, bias = attention_inputs(5, 2, 4, 4)
    bias = bias if bias_is_learned else bias.detach()
    whole = attention.attend(q, k, v, bias)
    monkeypatch.setattr(attention, "MAX_FUSED_BATCH", 2)
    torch.testing.assert_close(attention.attend(q, k, v, bias), whole)


@pytest.mark.parametrize("backend", BACKENDS)
def test_attention_without_bias_and_in_bfloat16(backend):
    q, k, v, bias = attention_inputs(2, 2, 6, 8)
    torch.testing.assert_close(
        attention.attend(q, k, v, backend=backend), attention.attend(q, k, v, torch.zeros_like(bias), backend)
    )
    half = [tensor.detach().bfloat16().requires_grad_() for tensor in (q, k, v, bias)]
    y = attention.attend(*half, backend=backend)
    y.sum().backward()
    assert y.dtype == torch.bfloat16
    assert all(tensor.grad.dtype == torch.bfloat16 and tensor.grad.isfinite().all() for tensor in half)


@pytest.mark.parametrize("backend", BACKENDS)
def test_focus_present_is_a_mask_on_all_other_frames(backend):
    torch.manual_seed(0)
    layer = attention.TemporalAttention(6, heads=2, dim_head=8, backend=backend).double()
    x = torch.randn(3, 6, 5, 2, 2, dtype=torch.float64)
    bias = torch.randn(2, 5, 5, dtype=torch.float64)
    focus = torch.tensor([False, True, False])
    y, free = layer(x, bias, focus), layer(x, bias)
    torch.testing.assert_close(y[[0, 2]], free[[0, 2]])
    single_frames = [layer(x[1:2, :, f : f + 1], bias[:, :1, :1]) for f in range(5)]
    torch.testing.assert_close(y[1:2], torch.cat(single_frames, dim=2))


def test_linear_attention_by_loops():
    torch.manual_seed(0)
    layer = build_temporal_layer(6, TemporalConfig(layer="linear-attention", heads=2, dim_head=8)).double()
    x = torch.randn(1, 6, 5, 1, 2, dtype=torch.float64)
    y = layer(x)
    for pixel in range(2):
        qkv = layer.to_qkv(x[0, :, :, 0, pixel].T).view(5, 3, 2, 8)  # (frames, which, heads, dim_head)
        heads = []
        for head in range(2):
            q, k, v = (qkv[:, which, head] for which in range(3))
            q, k = apply_rotary(q).softmax(dim=1), apply_rotary(k).softmax(dim=0)
            heads.append((q @ (k.T @ v)) / math.sqrt(8))
        torch.testing.assert_close(y[0, :, :, 0, pixel].T, layer.to_out(torch.cat(heads, dim=1)))
