"""The diffusion process: the paper's constants, a second implementation, and properties."""

import pytest
import torch
from diffusers import DDPMScheduler

from ssmvdm import GaussianDiffusion
from ssmvdm.diffusion import cosine_betas, to_model_range, to_unit_range


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
