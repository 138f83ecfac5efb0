"""Videos from a network: a sample is a function of (seed, index), guidance is linear, mixing is what it says."""

import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from ssmvdm import GaussianDiffusion, TemporalConfig, UNet3D, UNet3DConfig
from ssmvdm.samplers import noise_like
from ssmvdm.sampling import batches, denoiser, finished, interpolator, sample_generator, sample_videos
from tests.sampling.conftest import TINY

SAMPLERS = [
    ("ddpm", None), ("ddpm", 4), ("ddim", 5), ("diffusers:DPMSolverMultistepScheduler", 6),
    ("diffusers:EulerAncestralDiscreteScheduler", 6), ("diffusers:SASolverScheduler", 6),
]  # fmt: skip


class Elementwise(nn.Module):
    """A network that computes every element alone, and so the same bits in any batch."""

    def __init__(self, factor):
        super().__init__()
        self.config, self.factor = TINY, nn.Parameter(torch.tensor(factor))

    def forward(self, x, t):
        return x * self.factor


def stacked(model, count=8, seed=0, frames=4, diffusion=None, **options):
    diffusion = diffusion or GaussianDiffusion(12)
    return np.stack(list(sample_videos(model, diffusion, count, frames, 8, seed=seed, **options)))


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.parametrize(("sampler", "steps"), SAMPLERS)
def test_a_sample_depends_on_seed_and_index_alone(sampler, steps):
    options = {"sampler": sampler, "steps": steps}
    videos = stacked(Elementwise(0.6), batch=8, **options)
    assert videos.dtype == np.float32
    assert videos.shape == (8, 3, 4, 8, 8)
    assert 0 <= videos.min() < videos.max() <= 1
    for batch in (1, 3):
        assert np.array_equal(videos, stacked(Elementwise(0.6), batch=batch, **options))
    assert np.array_equal(videos[:5], stacked(Elementwise(0.6), count=5, **options))
    assert len({video.tobytes() for video in videos}) == 8
    assert not np.array_equal(videos[0], stacked(Elementwise(0.6), count=1, seed=1, **options)[0])


class Nudged(nn.Module):
    """The network, each number it predicts moved by up to a few units in the last place of the largest."""

    def __init__(self, network):
        super().__init__()
        self.config, self.network, self.generator = network.config, network, torch.Generator().manual_seed(0)

    def forward(self, x, t):
        y = self.network(x, t)
        unit = torch.finfo(y.dtype).eps * y.abs().max()
        return y + unit * torch.randn(y.shape, generator=self.generator, dtype=y.dtype)


@pytest.mark.parametrize(("sampler", "steps"), SAMPLERS[1:3])
@pytest.mark.parametrize("layer", ["bi-s6", "attention"])
def test_batch_changes_a_networks_video_by_rounding_only(layer, sampler, steps):
    """Not more than rounding of the network's output does in a batch that stays the same."""
    torch.manual_seed(1)
    temporal = TemporalConfig(layer, heads=1, dim_head=8, states=2)
    model = UNet3D(UNet3DConfig(base_channels=8, channel_mults=(1, 2), temporal=temporal)).eval()
    options = {"sampler": sampler, "steps": steps, "count": 3}
    videos = stacked(model, batch=3, **options)
    assert np.array_equal(videos, stacked(model, batch=3, **options))
    rounding = np.abs(videos - stacked(Nudged(model), batch=3, **options)).max()
    for batch in (1, 2):
        assert np.abs(videos - stacked(model, batch=batch, **options)).max() <= 8 * rounding


def test_generators_of_samples_are_distinct_and_stay_what_they_are():
    first = [torch.randint(1 << 62, (), generator=sample_generator(7, index)).item() for index in range(2000)]
    assert len(set(first)) == 2000
    assert first[5] == torch.randint(1 << 62, (), generator=sample_generator(7, 5)).item()
    assert sample_generator(0, 2**32 - 1).initial_seed() < 2**32


def test_more_frames_than_trained_or_fewer():
    for frames in (1, 3, 37):
        assert stacked(UNet3D(TINY).eval(), count=1, frames=frames, sampler="ddim", steps=2).shape[2] == frames


CONDITIONAL = UNet3DConfig(
    base_channels=8, channel_mults=(1, 2), cond_dim=5, temporal=TemporalConfig(heads=1, dim_head=8, states=2)
)


def conditional():
    torch.manual_seed(2)
    model = UNet3D(CONDITIONAL).double().eval()
    return model, torch.randn(2, 3, 2, 8, 8, dtype=torch.float64), torch.tensor([3, 9]), torch.randn(2, 5).double()


def test_guidance_is_linear_and_one_is_the_conditional_prediction():
    model, x, t, cond = conditional()
    with torch.no_grad():
        null, plain, guided = denoiser(model)(x, t), denoiser(model, cond)(x, t), denoiser(model, cond, 3.5)(x, t)
        assert torch.equal(plain, model(x, t, cond))
        assert torch.equal(denoiser(model, cond, 1.0)(x, t), plain)
        assert torch.equal(null, model(x, t, cond, cond_drop=torch.ones(2, dtype=torch.bool)))
        assert torch.equal(denoiser(model, cond, 0.0)(x, t), null)
    expected = (1 - 3.5) * null + 3.5 * plain
    operations, eps = 8, torch.finfo(torch.float64).eps
    assert (guided - expected).abs().max() <= operations * eps * 3.5 * max(null.abs().max(), plain.abs().max())
    assert not torch.equal(guided, plain)


def test_each_sample_has_its_own_condition_whatever_the_batch():
    model, *_ = conditional()
    model, cond = model.float(), torch.randn(3, 5, generator=torch.Generator().manual_seed(0))
    seen = []

    def spy(module, arguments, keywords):
        if not keywords:  # the conditional half of guidance
            seen.append(arguments[2])

    model.register_forward_pre_hook(spy, with_kwargs=True)
    stacked(model, count=3, cond=cond, guidance=2.0, batch=2, sampler="ddim", steps=1)
    assert torch.equal(torch.cat(seen), cond)


def test_interpolation_mixes_noises_and_denoises():
    """With a network that predicts no noise, one step from `level` divides by sqrt(abar) and clips."""
    diffusion, level, seed = GaussianDiffusion(12), 7, 4
    first, second = np.random.default_rng(0).random((2, 3, 4, 8, 8)).astype(np.float32)
    sample = interpolator(Elementwise(0.0), diffusion, first, second, count=5, level=level, steps=1, seed=seed)
    videos = sample(range(5), iter)
    noise = noise_like(torch.empty(1, 3, 4, 8, 8), [sample_generator(seed, 0)])[0]
    abar = diffusion.alphas_cumprod[level].item()
    noised = [abar**0.5 * (2 * torch.from_numpy(end) - 1) + (1 - abar) ** 0.5 * noise for end in (first, second)]
    eps, operations = torch.finfo(torch.float32).eps, 16
    for index, video in enumerate(videos):
        mixed = (1 - index / 4) * noised[0] + index / 4 * noised[1]
        expected = ((mixed / abar**0.5).clamp(-1, 1) + 1) / 2
        bound = operations * eps * noised[0].abs().max().item() / abar**0.5
        assert np.abs(video - expected.numpy()).max() <= bound
    assert np.array_equal(sample([1, 3], iter), videos[[1, 3]])


def test_what_is_not_finite_is_named():
    x = torch.zeros(2, 3, 1, 2, 2)
    x[1, 0, 0, 0, 0] = float("nan")
    with pytest.raises(ArithmeticError, match="sample 6 is not finite"):
        finished(x, [5, 6])


def test_batches_cover_the_count():
    assert [list(b) for b in batches(7, 3)] == [[0, 1, 2], [3, 4, 5], [6]]
    assert batches(0, 3) == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"size": 9}, "size must be a positive multiple of 2 for this network, got 9"),
        ({"frames": 0}, "frames must be a whole number of at least 1, got 0"),
        ({"count": -1}, "count must be a whole number of at least 0, got -1"),
        ({"batch": 0}, "batch must be a whole number of at least 1, got 0"),
        ({"seed": -1}, "seed must be a whole number of at least 0, got -1"),
        ({"steps": 13}, "steps must be a whole number from 1 to 12, got 13"),
        ({"sampler": "euler"}, "sampler must be ddpm, ddim or"),
        ({"eta": 0.5}, "eta belongs to sampler 'ddim'"),
        ({"cond": torch.zeros(1, 5)}, "cond needs a network with cond_dim"),
        ({"guidance": 2.0}, "guidance needs cond"),
    ],
)
def test_wrong_arguments_are_named_before_any_work(options, said):
    arguments = {"count": 1, "frames": 4, "size": 8} | options
    with pytest.raises(ValueError, match=re.escape(said)):
        sample_videos(Elementwise(0.0), GaussianDiffusion(12), **arguments)


@pytest.mark.parametrize("wrong", [torch.zeros(2, 5), torch.zeros(1, 4)])
def test_a_condition_of_the_wrong_shape_is_named(wrong):
    with pytest.raises(ValueError, match="cond must"):
        list(sample_videos(conditional()[0].float(), GaussianDiffusion(12), 1, 2, 8, cond=wrong))


GOOD = np.zeros((3, 4, 8, 8), np.float32)


@pytest.mark.parametrize(
    ("first", "second", "options", "said"),
    [
        (GOOD[0], GOOD, {}, "first must be (3, frames, height, width)"),
        (GOOD, GOOD[:, :, :7], {}, "second must be (3, frames, height, width)"),
        (GOOD, GOOD[:, :2], {}, "first and second must have one shape, got (3, 4, 8, 8) and (3, 2, 8, 8)"),
        (GOOD - 1, GOOD, {}, "first must be in [0, 1], got values from -1.0 to -1.0"),
        (GOOD, GOOD * np.nan, {}, "second must be in [0, 1]"),
        (GOOD, GOOD, {"level": 12}, "level must be a whole number from 0 to 11, got 12"),
        (GOOD, GOOD, {"level": 3, "steps": 5}, "steps must be a whole number from 1 to 4, got 5"),
        (GOOD, GOOD, {"count": 1}, "count must be a whole number of at least 2, got 1"),
    ],
)
def test_wrong_arguments_of_interpolation_are_named(first, second, options, said):
    arguments = {"count": 3, "level": 3} | options
    with pytest.raises(ValueError, match=re.escape(said)):
        interpolator(Elementwise(0.0), GaussianDiffusion(12), first, second, **arguments)


@pytest.mark.parametrize("conditional", [False, True])
@pytest.mark.parametrize(("dtype", "share"), [(torch.float64, 1e-4), (torch.float16, 0.05), (torch.bfloat16, 0.3)])
def test_a_network_of_another_type_draws_nearly_the_same(dtype, share, conditional):
    """How far a video moves, beside how far it lies from that of another seed. The sampler itself stays in float32."""
    torch.manual_seed(0)
    config = replace(TINY, cond_dim=5 if conditional else None)
    network = UNet3D(config).eval()
    how = {"count": 2, "sampler": "ddim", "steps": 5}
    if conditional:
        how |= {"cond": torch.randn(2, 5), "guidance": 2.0}
    videos, others = stacked(network, **how), stacked(network, seed=1, **how)
    found = stacked(network.to(dtype), **how)
    assert found.dtype == np.float32
    assert np.abs(found - videos).mean() < share * np.abs(others - videos).mean()
