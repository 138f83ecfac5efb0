"""`swap_temporal_layers` on real models of other packages: what it finds, and that the result computes and learns."""

from collections import Counter

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from ssmvdm import swap_temporal_layers
from ssmvdm.integrations import ParallelScan, TemporalScan
from ssmvdm_kernels import available_backends
from tests.model.copies import CopiesOfVideo

from .models import FRAMES, MODELS

OPTIONS = {"states": 4}


@pytest.fixture(params=MODELS, ids=lambda model: model.name)
def video_model(request):
    return request.param


def scans(model: nn.Module) -> list[TemporalScan]:
    return [module for module in model.modules() if isinstance(module, TemporalScan)]


def weighted(output):
    return (output * torch.linspace(-1, 1, output.numel()).reshape(output.shape)).sum()


@pytest.mark.parametrize("mode", ["replace", "parallel"])
def test_finds_every_temporal_layer_and_reports_it(video_model, mode):
    model = video_model.made()
    attentions = {name: module for name, module in model.named_modules() if name.endswith(("attn1", "attn2", "fn"))}
    report = swap_temporal_layers(model, mode, **OPTIONS)
    assert (report.model, report.mode) == (video_model.name, mode)
    assert Counter(layer.owner for layer in report.swapped) == video_model.owners
    assert len(report.kept) == video_model.kept
    assert all("cross-attention" in layer.reason for layer in report.kept)
    for layer in report.swapped:
        module = model.get_submodule(layer.name)
        scan = module if mode == "replace" else module.scan
        assert isinstance(module, TemporalScan if mode == "replace" else ParallelScan)
        assert scan.mixer.channels == layer.channels
        assert layer.parameters_before == sum(p.numel() for p in attentions[layer.name].parameters())
        assert layer.parameters_after == sum(p.numel() for p in module.parameters())
        assert mode == "replace" or module.attention is attentions[layer.name]
    for layer in report.kept:
        assert model.get_submodule(layer.name) is attentions[layer.name]
    assert len(scans(model)) == len(report.swapped)
    assert all(layer.name in str(report) for layer in (*report.swapped, *report.kept))


@pytest.mark.parametrize("mode", ["replace", "parallel"])
def test_computes_and_gradients_reach_every_mixer(video_model, mode):
    model, video = video_model.made(), video_model.video()
    expected_shape = video_model.call(model, video).shape
    swap_temporal_layers(model, mode, **OPTIONS)
    if mode == "parallel":
        with torch.no_grad():
            for module in model.modules():
                if isinstance(module, ParallelScan):
                    module.gate.fill_(0.5)
    output = video_model.call(model, video)
    assert output.shape == expected_shape and output.isfinite().all()
    weighted(output).backward()
    for scan in scans(model):
        for name, parameter in scan.named_parameters():
            assert parameter.grad.isfinite().all() and parameter.grad.any(), name
    if mode == "replace":
        unread = [name for name, parameter in model.named_parameters() if parameter.grad is None]
        assert set(unread) <= {"time_rel_pos_bias.relative_attention_bias.weight", "transformer_in.proj_out.bias"}


def test_state_dict_round_trip(video_model):
    video = video_model.video()
    for mode in ("replace", "parallel"):
        trained = video_model.made()
        swap_temporal_layers(trained, mode, **OPTIONS)
        with torch.no_grad():
            for parameter in trained.parameters():
                if parameter.requires_grad:  # not the frequencies of rotary embeddings, which are cached
                    parameter.add_(0.01)
        fresh = video_model.made()
        swap_temporal_layers(fresh, mode, **OPTIONS)
        with torch.no_grad():
            expected, before = video_model.call(trained.eval(), video), video_model.call(fresh.eval(), video)
            fresh.load_state_dict(trained.state_dict(), strict=True)
            assert not torch.equal(before, expected)
            assert torch.equal(video_model.call(fresh, video), expected)


def test_parallel_begins_as_the_original_and_learns(video_model):
    model, video = video_model.made(), video_model.video()
    with torch.no_grad():
        original = video_model.call(model, video)
    swap_temporal_layers(model, "parallel", **OPTIONS)
    with torch.no_grad():
        assert torch.equal(video_model.call(model, video), original)
    # Only what was added is trained, so that nothing else can have lowered the loss.
    added = [p for m in model.modules() if isinstance(m, ParallelScan) for p in (m.gate, *m.scan.parameters())]
    model.requires_grad_(False)
    for parameter in added:
        parameter.requires_grad_(True)
    optimizer = torch.optim.Adam(added, lr=1e-2)
    target = original + 0.1 * torch.randn_like(original)
    losses = []
    for _ in range(4):
        loss = F.mse_loss(video_model.call(model, video), target)
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        if len(losses) == 1:
            assert all(m.gate.grad.any() for m in model.modules() if isinstance(m, ParallelScan))
        optimizer.step()
    assert losses == sorted(losses, reverse=True)
    assert all(scan.mixer.out_proj.weight.grad.any() for scan in scans(model))


def test_reads_the_temporal_tensors_without_copies(video_model):
    if "cpu" not in available_backends():
        pytest.skip("the cpu extension is not built: the reference leaves layouts to PyTorch")
    model, video = video_model.made(), video_model.video()
    swap_temporal_layers(model, **OPTIONS)
    seen = []

    def watch(module, arguments, keywords):
        # The tensor's own size is the limit: anything as large as it that is only moved is a copy.
        module.watcher = CopiesOfVideo(arguments[0].numel())
        module.watcher.__enter__()

    def note(module, arguments, keywords, output):
        module.watcher.__exit__(None, None, None)
        (x,) = arguments
        seen.append((module.watcher.seen, x.stride() == output.stride(), x.shape[-2:]))

    for scan in scans(model):
        scan.register_forward_pre_hook(watch, with_kwargs=True)
        scan.register_forward_hook(note, with_kwargs=True)
    with torch.no_grad():
        video_model.call(model, video)
    assert len(seen) == len(scans(model))
    for copies, has_same_layout, (frames, _) in seen:
        assert copies == [] and has_same_layout and frames == FRAMES
