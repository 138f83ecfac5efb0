"""`swap_temporal_layers`: what it refuses, what it warns of, and what its layers do with what attention was given."""

import pytest
import torch
from torch import nn

from ssmvdm import swap_temporal_layers
from ssmvdm.integrations import FullAttentionError, ParallelScan, TemporalScan
from ssmvdm_kernels import BidirectionalMamba, available_backends
from tests.model.copies import CopiesOfVideo

from .models import FRAMES, MODELS, diffusers, noise

BY_NAME = {model.name: model for model in MODELS}
FULL_ATTENTION = {
    "WanTransformer3DModel": {"num_layers": 1},
    "CogVideoXTransformer3DModel": {"num_layers": 1},
    "HunyuanVideoTransformer3DModel": {"num_layers": 1, "num_single_layers": 1},
    "LTXVideoTransformer3DModel": {"num_layers": 1},
    "MochiTransformer3DModel": {"num_layers": 1},
}


@pytest.mark.parametrize("name", FULL_ATTENTION)
def test_full_attention_over_space_and_time_is_refused_in_words(name):
    with torch.device("meta"):
        model = getattr(diffusers(), name)(**FULL_ATTENTION[name])
    before = dict(model.named_modules())
    for whole in (model, nn.Sequential(model)):
        with pytest.raises(FullAttentionError, match=rf"{name}.*all frames and pixels at once.*Nothing was changed"):
            swap_temporal_layers(whole)
    assert dict(model.named_modules()) == before


def test_refusals_leave_the_model_as_it_was():
    model = BY_NAME["LatteTransformer3DModel"].made()
    before = dict(model.named_modules())
    with pytest.raises(ValueError, match="mode must be one of 'replace', 'parallel', but is 'beside'"):
        swap_temporal_layers(model, "beside")
    with pytest.raises(TypeError, match="d_state"):
        swap_temporal_layers(model, d_state=4)
    with pytest.raises(ValueError, match="states must be at least 1, but is 0"):
        swap_temporal_layers(model, states=0)
    assert dict(model.named_modules()) == before
    with pytest.raises(TypeError, match=r"model must be a torch\.nn\.Module, but is of type dict"):
        swap_temporal_layers({})
    with pytest.raises(ValueError, match=r"found no temporal attention in Linear\. Models it knows: UNet3DCond"):
        swap_temporal_layers(nn.Linear(2, 2))
    swap_temporal_layers(model, "parallel", states=4)
    with pytest.raises(ValueError, match="this LatteTransformer3DModel have been swapped already"):
        swap_temporal_layers(model)


def test_a_motion_adapter_is_swapped_by_itself():
    adapter = diffusers().MotionAdapter(
        block_out_channels=(8, 16), motion_layers_per_block=1, motion_num_attention_heads=2, motion_norm_num_groups=4
    )
    report = swap_temporal_layers(adapter, states=4)
    assert {layer.owner for layer in report.swapped} == {"AnimateDiffTransformer3D"}
    assert len(report.swapped) == sum(isinstance(module, TemporalScan) for module in adapter.modules())
    assert len(report.position_limits) == len(report.swapped) // 2


def test_temporal_cross_attention_is_kept_in_a_part_of_a_model_too():
    block = diffusers().models.TransformerTemporalModel(
        num_attention_heads=2, attention_head_dim=4, in_channels=8, norm_num_groups=2, cross_attention_dim=6,
        double_self_attention=False,
    )  # fmt: skip
    report = swap_temporal_layers(block, states=4)
    assert [layer.name for layer in report.swapped] == ["transformer_blocks.0.attn1"]
    assert [layer.name for layer in report.kept] == ["transformer_blocks.0.attn2"]
    condition = noise(2 * 4, 3, 6)  # one per pixel
    out = block(torch.randn(2 * FRAMES, 8, 2, 2), num_frames=FRAMES, encoder_hidden_states=condition).sample
    assert out.shape == (2 * FRAMES, 8, 2, 2) and out.isfinite().all()


def test_position_embeddings_of_a_trained_length_are_reported():
    """AnimateDiff's end at 32 frames. The scan needs none: without them, as the report says, longer videos run."""
    animate = BY_NAME["UNetMotionModel"]
    model = animate.made()
    report = swap_temporal_layers(model, states=4)
    assert len(report.position_limits) == 7
    assert all((limit.frames, limit.is_exact) == (32, False) for limit in report.position_limits)
    assert "at most 32 frames; the scan needs none: for longer videos set it to None" in str(report)
    frames = 33
    video, text = torch.randn(1, 4, frames, 8, 8), noise(frames, 3, 16)
    with torch.no_grad():
        with pytest.raises(RuntimeError, match="33"):
            model(video, 7, encoder_hidden_states=text)
        for limit in report.position_limits:
            block, _, attribute = limit.name.rpartition(".")
            setattr(model.get_submodule(block), attribute, None)
        assert model(video, 7, encoder_hidden_states=text).sample.isfinite().all()
    beside = swap_temporal_layers(animate.made(), "parallel", states=4)
    assert "the attention beside the scan needs a longer table" in str(beside)


def test_position_embeddings_of_exactly_one_length_are_reported():
    report = swap_temporal_layers(BY_NAME["LatteTransformer3DModel"].made(), states=4)
    (limit,) = report.position_limits
    assert (limit.name, limit.frames, limit.is_exact) == ("temp_pos_embed", FRAMES, True)
    assert f"temp_pos_embed: exactly {FRAMES} frames" in str(report)


@pytest.mark.parametrize("name", ["UNet3DConditionModel", "I2VGenXLUNet", "UNetSpatioTemporalConditionModel", "Unet3D"])
def test_models_without_such_embeddings_take_any_length(name):
    model, shape = BY_NAME[name].made(), list(BY_NAME[name].input_shape)
    assert swap_temporal_layers(model, states=4).position_limits == ()
    shape[len(shape) - 1 - shape[::-1].index(FRAMES)] = 67  # the channels may be as many
    with torch.no_grad():
        assert BY_NAME[name].call(model, torch.randn(shape)).isfinite().all()


def test_parameters_that_nothing_reads_any_more_are_reported():
    lucid = BY_NAME["Unet3D"]
    model = lucid.made()
    assert swap_temporal_layers(model, states=4).unread_parameters == (
        "time_rel_pos_bias.relative_attention_bias.weight",
    )
    lucid.call(model, lucid.video()).sum().backward()
    assert [name for name, p in model.named_parameters() if p.grad is None] == [
        "time_rel_pos_bias.relative_attention_bias.weight"
    ]
    assert swap_temporal_layers(lucid.made(), "parallel", states=4).unread_parameters == ()


def test_frames_that_focus_on_the_present_stay_alone():
    """The mask of video-diffusion-pytorch: where it holds, no frame may see another one."""
    lucid = BY_NAME["Unet3D"]
    model, video = lucid.made().eval(), lucid.video()
    swap_temporal_layers(model, states=4)
    other = video.clone()
    other[:, :, 0] += 1
    time, mask = torch.full((2,), 7), torch.tensor([True, False])
    temporal = model.init_temporal_attn  # the first layer is never given the mask: it would mix the frames anyway
    temporal.fn.fn = nn.Identity()
    temporal.fn.forward = lambda x, **_: x
    with torch.no_grad():
        changed = [model(v, time, focus_present_mask=mask) for v in (video, other)]
    is_changed = (changed[0] != changed[1]).any(dim=1).flatten(2).any(dim=2)  # (batch, frames)
    assert is_changed.tolist() == [[True, False, False, False], [True] * FRAMES]


def test_the_strength_of_adapters_is_taken_where_there_are_none():
    scan, x = TemporalScan(BidirectionalMamba(8)), torch.randn(2, FRAMES, 8)
    assert torch.equal(scan(x, scale=0.5), scan(x))


@pytest.mark.parametrize("name", ["encoder_hidden_states", "attention_mask"])
@pytest.mark.parametrize("mode", ["replace", "parallel"])
def test_what_a_scan_cannot_read_is_refused(mode, name):
    model = BY_NAME["LatteTransformer3DModel"].made()
    swap_temporal_layers(model, mode, states=4)
    layer = model.temporal_transformer_blocks[0].attn1
    x = torch.randn(5, FRAMES, 24)
    assert layer(x, encoder_hidden_states=None, attention_mask=None).shape == x.shape
    given = x if name == "encoder_hidden_states" else torch.zeros(5, 1, FRAMES)
    with pytest.raises(ValueError, match=f"TemporalScan: {name} must be None"):
        layer(x, **{name: given})


@pytest.mark.parametrize(
    "arranged",
    [
        lambda x: x.flatten(0, 1).contiguous(),  # (b*h*w, f, c), diffusers
        lambda x: x.contiguous(),  # (b, h*w, f, c)
        lambda x: x.permute(0, 3, 2, 1).contiguous().permute(0, 3, 2, 1),  # the same, a view of (b, c, f, h, w)
        lambda x: x.permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3),  # a view of (b, f, h, w, c)
        lambda x: x.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2),  # a view of (b*f, c, h, w)
    ],
    ids=["sequences", "pixels", "video", "channels-last", "frames"],
)
def test_every_arrangement_of_a_temporal_tensor_is_read_as_it_lies(arranged):
    if "cpu" not in available_backends():
        pytest.skip("the cpu extension is not built: the reference leaves layouts to PyTorch")
    torch.manual_seed(0)
    layer = TemporalScan(BidirectionalMamba(8, states=4)).double()
    x = torch.randn(2, 49, 5, 8, dtype=torch.float64)  # (b, h*w, f, c)
    expected = layer(x.flatten(0, 1).contiguous()).unflatten(0, (2, 49))
    given = arranged(x)
    with CopiesOfVideo(x.numel()) as copies, torch.no_grad():
        y = layer(given)
    assert copies.seen == [] and y.stride() == given.stride()
    torch.testing.assert_close(y.reshape(x.shape), expected)


@pytest.mark.parametrize("sequences", [65_535, 65_536, 65_537])
def test_any_number_of_sequences(sequences):
    """CUDA's attention kernels run out of grid at 65,536; here that many are computed as in any smaller batch."""
    torch.manual_seed(0)
    layer = TemporalScan(BidirectionalMamba(4, states=2))
    x = torch.randn(sequences, 3, 4, requires_grad=True)
    y = layer(x)
    weights = torch.randn_like(y)
    (dx,) = torch.autograd.grad((y * weights).sum(), x)
    for rows in (slice(0, 100), slice(sequences - 100, sequences)):
        few = x[rows].detach().requires_grad_()
        y_few = layer(few)
        (dx_few,) = torch.autograd.grad((y_few * weights[rows]).sum(), few)
        torch.testing.assert_close(y[rows], y_few)
        torch.testing.assert_close(dx[rows], dx_few)


@pytest.mark.slow
def test_a_model_over_more_than_65535_sequences():
    """1025 videos of 8 x 8 pixels: every layer of the upper level gets 65,600 sequences."""
    unet = BY_NAME["UNet3DConditionModel"]
    model = unet.made()
    swap_temporal_layers(model, states=2)
    seen = []
    for module in model.modules():
        if isinstance(module, TemporalScan):
            module.register_forward_pre_hook(lambda _, arguments: seen.append(arguments[0].shape[0]))
    output = unet.call(model, torch.randn(1025, 4, 2, 8, 8))
    output.square().mean().backward()
    assert max(seen) == 1025 * 64 > 65_535
    assert output.isfinite().all() and all(p.grad.isfinite().all() for p in model.parameters() if p.grad is not None)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float64])
def test_new_layers_have_the_dtype_device_and_mode_of_the_old(dtype):
    with torch.device("meta"):
        model = BY_NAME["UNet3DConditionModel"].build().to(dtype).eval()
    swap_temporal_layers(model, "parallel")
    for module in model.modules():
        if isinstance(module, ParallelScan):
            assert not module.training and not module.scan.mixer.training
            assert all(p.dtype == dtype and p.is_meta for p in module.parameters())


@pytest.mark.parametrize("name", ["UNet3DConditionModel", "Unet3D"])
def test_models_in_bfloat16_compute_in_it(name):
    model = BY_NAME[name].made().bfloat16()
    swap_temporal_layers(model, states=4)
    outputs = []
    for module in model.modules():
        if isinstance(module, TemporalScan):
            module.register_forward_hook(lambda _, arguments, output: outputs.append((arguments[0], output)))
    with torch.autocast("cpu", torch.bfloat16):  # texts and embeddings of time are float32
        BY_NAME[name].call(model, BY_NAME[name].video().bfloat16())
    assert outputs and all(y.dtype == torch.bfloat16 and y.isfinite().all() for _, y in outputs)


def test_parallel_is_bit_identical_under_autocast():
    unet = BY_NAME["UNet3DConditionModel"]
    model, video = unet.made(), unet.video()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        original = unet.call(model, video)
        swap_temporal_layers(model, "parallel", states=4)
        assert torch.equal(unet.call(model, video), original)


def test_gradient_checkpointing_of_diffusers_gives_the_same_gradients():
    latte = BY_NAME["LatteTransformer3DModel"]
    found = []
    for is_checkpointed in (False, True):
        model = latte.made()
        torch.manual_seed(0)
        swap_temporal_layers(model, states=4)
        model.gradient_checkpointing = is_checkpointed
        if is_checkpointed:
            model.enable_gradient_checkpointing()
        latte.call(model, latte.video()).square().sum().backward()
        found.append([p.grad for p in model.parameters() if p.grad is not None])
    torch.testing.assert_close(*found, rtol=0, atol=0)
