"""The diffusion process: the paper's constants, a second implementation, and properties."""

import pytest
import torch
from diffusers import DDPMScheduler
from torch._subclasses.fake_tensor import FakeTensorMode

from ssmvdm import GaussianDiffusion
from ssmvdm.diffusion import cosine_betas, to_model_range, to_unit_range
from ssmvdm.samplers import sampler_named


def test_constants_of_the_paper():
    betas = cosine_betas(256)
    assert betas.dtype == torch.float64
    index = torch.tensor([0, 1, 127, 254, 255])
    expected = torch.tensor([1.8882667e-4, 2.6294452e-4, 0.012177686, 0.74999076, 0.99989998], dtype=torch.float64)
    torch.testing.assert_close(betas[index], expected, rtol=1e-6, atol=0)
    cumprod = torch.tensor([0.99981117, 0.99954826, 0.49384359, 3.7059614e-5, 3.7059613e-9], dtype=torch.float64)
    torch.testing.assert_close(GaussianDiffusion(256).alphas_cumprod[index], cumprod, rtol=1e-6, atol=0)


@pytest.mark.parametrize("timesteps", [8, 256])
def test_equals_diffusers(timesteps):
    ours = GaussianDiffusion(timesteps)
    theirs = DDPMScheduler(
        num_train_timesteps=timesteps, trained_betas=ours.betas.tolist(), variance_type="fixed_small", clip_sample=True
    )
    theirs.set_timesteps(timesteps)
    torch.manual_seed(0)
    x, noise, eps = torch.randn(3, 2, 3, 4, 4, 4)
    for step in (0, 1, timesteps // 2, timesteps - 1):
        t = torch.full((2,), step)
        torch.testing.assert_close(ours.q_sample(x, t, noise), theirs.add_noise(x, noise, t))
        generator = torch.Generator().manual_seed(step)
        expected = theirs.step(eps, step, x, generator=generator).prev_sample
        same_noise = torch.randn(x.shape, generator=generator.manual_seed(step))
        torch.testing.assert_close(
            ours.p_sample(lambda x, t: eps, x, t, same_noise), expected, rtol=1e-4, atol=1e-4 * expected.abs().max()
        )


def test_noise_and_video_determine_each_other():
    diffusion = GaussianDiffusion(100)
    x0, noise = torch.randn(2, 5, 3, 2, 4, 4, dtype=torch.float64)
    t = torch.tensor([0, 1, 20, 50, 90])
    torch.testing.assert_close(diffusion.predict_x0(diffusion.q_sample(x0, t, noise), t, noise), x0)


def test_posterior_is_bayes_rule():
    """q(x_{t-1} | x_t, x0) from the product of the two normal densities it comes from."""
    diffusion = GaussianDiffusion(50)
    t = torch.arange(1, 50)
    x0, x_t = torch.randn(2, 49, 1, 1, 1, 1, dtype=torch.float64)
    mean, variance, log_variance = diffusion.posterior(x0, x_t, t)
    beta, previous = diffusion.betas[1:], diffusion.alphas_cumprod[:-1]
    precision = (1 - beta) / beta + 1 / (1 - previous)
    information = (1 - beta).sqrt() / beta * x_t.flatten() + previous.sqrt() / (1 - previous) * x0.flatten()
    torch.testing.assert_close(variance.flatten(), 1 / precision)
    torch.testing.assert_close(mean.flatten(), information / precision)
    torch.testing.assert_close(log_variance, variance.log())
    _, none_left, clipped = diffusion.posterior(x0[:1], x_t[:1], torch.tensor([0]))
    assert none_left.item() == 0
    torch.testing.assert_close(clipped.exp().item(), 1e-20)


def test_sampling_with_the_true_noise_finds_the_video():
    """A model that knows x0 leads there, whatever the noise on the way, and only the generator decides that noise."""
    diffusion = GaussianDiffusion(20)
    x0 = torch.rand(2, 3, 2, 4, 4) * 2 - 1

    def oracle(x_t, t):
        abar = diffusion.alphas_cumprod[t].float().view(-1, 1, 1, 1, 1)
        return (x_t - abar.sqrt() * x0) / (1 - abar).sqrt()

    start = torch.randn_like(x0)
    torch.testing.assert_close(diffusion.sample(oracle, start), x0, rtol=0, atol=1e-4)
    first, second = (diffusion.sample(lambda x, t: 0.5 * x, start, torch.Generator().manual_seed(1)) for _ in range(2))
    assert torch.equal(first, second)


def test_sampling_walks_all_steps_down_and_passes_keywords():
    steps = []

    def model(x, t, scale):
        steps.append(t[0].item())
        return x * scale

    diffusion = GaussianDiffusion(7)
    sample = diffusion.sample(model, torch.randn(1, 1, 1, 2, 2), progress=lambda r: list(r), scale=0.0)
    assert steps == [6, 5, 4, 3, 2, 1, 0] and not sample.requires_grad


def test_losses():
    x0, noise = torch.randn(2, 2, 3, 2, 4, 4)
    t = torch.tensor([3, 9])
    for loss, expected in (("l1", (noise - 0.5).abs().mean()), ("l2", (noise - 0.5).square().mean())):
        model = lambda x, t: torch.full_like(x, 0.5)  # noqa: E731
        torch.testing.assert_close(GaussianDiffusion(10, loss).training_loss(model, x0, t, noise), expected)


def test_dynamic_threshold_is_the_quantile_and_static_clips():
    x = torch.randn(3, 3, 2, 5, 5) * torch.tensor([0.1, 1, 5]).view(3, 1, 1, 1, 1)
    zero_noise_step = torch.zeros(3, dtype=torch.long)
    static, dynamic = GaussianDiffusion(10), GaussianDiffusion(10, dynamic_threshold=0.9)
    video = dynamic.predict_x0(x, zero_noise_step, torch.zeros_like(x))
    limit = torch.quantile(video.flatten(1).abs(), 0.9, dim=1).clamp(min=1).view(3, 1, 1, 1, 1)
    for diffusion, expected in ((static, video.clamp(-1, 1)), (dynamic, video.clamp(-limit, limit) / limit)):
        mean, _, _ = diffusion.p_mean_variance(lambda x, t: torch.zeros_like(x), x, zero_noise_step)
        torch.testing.assert_close(mean, diffusion.posterior(expected, x, zero_noise_step)[0])


def test_ranges_invert_each_other():
    video = torch.rand(2, 3)
    torch.testing.assert_close(to_unit_range(to_model_range(video)), video)
    assert to_model_range(torch.tensor([0.0, 1.0])).tolist() == [-1.0, 1.0]


@pytest.mark.parametrize(
    "wrong",
    [{"timesteps": 0}, {"timesteps": 2.5}, {"loss": "huber"}, {"dynamic_threshold": 0}, {"dynamic_threshold": 2}],
)
def test_errors(wrong):
    with pytest.raises(ValueError, match=f"{next(iter(wrong))} must be"):
        GaussianDiffusion(**wrong)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"noise": torch.zeros(1, 3, 2, 4, 4)}, r"noise must be \(2, 3, 2, 4, 4\), got \(1, 3, 2, 4, 4\)"),
        ({"t": torch.tensor([3])}, r"t must be \(2,\) int64 or int32, got \(1,\) torch.int64"),
        ({"t": torch.tensor([3.0, 4.0])}, "got .* torch.float32"),
        ({"t": 3}, "t must be .* got 3"),
        ({"t": torch.tensor([3, -1])}, r"t must be from 0 to 9, got \[3, -1\]"),
        ({"t": torch.tensor([10, 0])}, r"t must be from 0 to 9, got \[10, 0\]"),
    ],
)
def test_nothing_is_broadcast_and_no_step_wraps(arguments, message):
    diffusion, x = GaussianDiffusion(10), torch.zeros(2, 3, 2, 4, 4)
    t, noise = arguments.get("t", torch.tensor([3, 9])), arguments.get("noise", x)
    model = lambda x, t: x  # noqa: E731
    with pytest.raises(ValueError, match=message):
        diffusion.q_sample(x, t, noise)
    with pytest.raises(ValueError, match=message):
        diffusion.training_loss(model, x, t, noise)
    with pytest.raises(ValueError, match=message):
        diffusion.p_sample(model, x, t, noise)
    with pytest.raises(ValueError, match=message.replace("noise", "x0")):
        diffusion.posterior(noise, x, t)


def test_a_model_with_too_few_channels_is_refused():
    diffusion, x, t = GaussianDiffusion(10), torch.zeros(2, 3, 2, 4, 4), torch.tensor([3, 9])
    model = lambda x, t: x[:, :1]  # noqa: E731
    message = r"what the model returns must be \(2, 3, 2, 4, 4\), got \(2, 1, 2, 4, 4\)"
    with pytest.raises(ValueError, match=message):
        diffusion.training_loss(model, x, t, x)
    with pytest.raises(ValueError, match=message):
        diffusion.p_sample(model, x, t, x)
    for name in ("ddpm", "ddim", "diffusers:DDIMScheduler"):
        with pytest.raises(ValueError, match=message):
            sampler_named(name)(diffusion, model, x, [torch.Generator()] * 2)


def test_steps_are_looked_up_without_their_values():
    """As a count of operations, a compiler and a GPU need it."""
    with FakeTensorMode():
        x, t = torch.zeros(2, 3, 2, 4, 4), torch.zeros(2, dtype=torch.long)
        assert GaussianDiffusion(10).q_sample(x, t, x).shape == x.shape
