"""Samplers against diffusers step by step, against data whose optimal denoiser is known, and their rules."""

import re

import diffusers
import numpy as np
import pytest
import torch

from ssmvdm import GaussianDiffusion, samplers

EPS = torch.finfo(torch.float64).eps
THEIR_LEAST_VARIANCE = 1e-20  # diffusers' DDPM adds noise of this variance to the video of a subset of the levels
TEN_SIGMA = 10  # no normal number is larger
OPERATIONS = 32  # roundings of one step, ours and theirs, each of at most the largest number in it


def generators_of(*seeds):
    return [torch.Generator().manual_seed(seed) for seed in seeds]


def bent(x, t):
    """A network that is none: smooth in x, different at each level."""
    return torch.tanh(x * (1 + t.view(-1, 1, 1, 1, 1) / 50))


def same_tables(scheduler, diffusion):
    """diffusers keeps float32 tables; with ours in float64 two programs of the same mathematics agree to float64."""
    scheduler.betas, scheduler.alphas = diffusion.betas, 1 - diffusion.betas
    scheduler.alphas_cumprod = diffusion.alphas_cumprod
    scheduler.one = torch.ones((), dtype=torch.float64)
    return scheduler


def options_of(diffusion, threshold, sample_max):
    shared = {
        "num_train_timesteps": diffusion.timesteps,
        "trained_betas": diffusion.betas.tolist(),
        "timestep_spacing": "trailing",
    }
    if threshold is None:
        return shared | {"clip_sample": True}
    return shared | {
        "clip_sample": False,
        "thresholding": True,
        "dynamic_thresholding_ratio": threshold,
        "sample_max_value": sample_max,
    }


@pytest.mark.parametrize("threshold", [None, 0.9])
@pytest.mark.parametrize(("timesteps", "steps"), [(256, 256), (256, 32), (60, 5), (4, 1)])
@pytest.mark.parametrize(("name", "eta"), [("ddpm", None), ("ddim", 0.0), ("ddim", 0.4), ("ddim", 1.0)])
def test_equals_diffusers_at_every_step(name, eta, timesteps, steps, threshold):
    ours = GaussianDiffusion(timesteps, dynamic_threshold=threshold)
    options = options_of(ours, threshold, sample_max=1e9)
    if name == "ddpm":
        theirs = diffusers.DDPMScheduler(variance_type="fixed_small", **options)
    else:
        theirs = diffusers.DDIMScheduler(**options)
    same_tables(theirs, ours).set_timesteps(steps)
    visited = []

    def model(x, t):
        visited.append(x)
        return bent(x, t)

    x = samplers.noise_like(torch.empty(2, 3, 2, 4, 4, dtype=torch.float64), generators_of(1, 2))
    visited.append(samplers.sampler_named(name, eta)(ours, model, x, generators_of(3, 4), steps=steps))

    noises = generators_of(3, 4)
    extra = {} if name == "ddpm" else {"eta": eta, "use_clipped_model_output": True}
    for t, before, after in zip(theirs.timesteps, visited, visited[1:], strict=False):
        noise = bent(before, t.expand(2))
        expected = theirs.step(noise, t, before, generator=noises, **extra).prev_sample
        # Two differences cancel: the predicted video's, and in their coefficients 1 - abar's.
        abar = ours.alphas_cumprod[t].item()
        bound = OPERATIONS * EPS * (abar**-0.5 + 1 / (1 - abar)) * max(before.abs().max().item(), 1.0)
        if name == "ddpm" and t == theirs.timesteps[-1]:
            bound += TEN_SIGMA * THEIR_LEAST_VARIANCE**0.5
        assert (after - expected).abs().max().item() <= bound
    assert len(visited) == steps + 1


def test_the_plain_loop_of_p_sample_is_ddpm():
    diffusion = GaussianDiffusion(64)
    x = torch.randn(1, 3, 2, 4, 4, dtype=torch.float64)
    generator = torch.Generator().manual_seed(5)
    y = x
    for step in range(63, -1, -1):
        noise = torch.randn(x.shape, generator=generator, dtype=torch.float64)
        y = diffusion.p_sample(bent, y, torch.tensor([step]), noise)
    sample = diffusion.sample(bent, x, torch.Generator().manual_seed(5))
    # Every step but those whose predicted video is clipped may pass an error on enlarged; the bent network's slope and
    # the posterior's weights keep the product below the number of steps.
    assert (sample - y).abs().max() <= 64 * OPERATIONS * EPS * diffusion.sqrt_recip_alphas_cumprod[-1]


MEAN, DEVIATION = 0.3, 0.5


def optimal(diffusion):
    """E[noise | x_t] for data of independent normal elements: Tweedie's formula, linear in x."""

    def model(x, t):
        abar = diffusion.alphas_cumprod[t].view(-1, *(1,) * (x.ndim - 1))
        return (1 - abar).sqrt() * (x - abar.sqrt() * MEAN) / (abar * DEVIATION**2 + 1 - abar)

    return model


def test_ddpm_reproduces_mean_and_variance_of_normal_data():
    diffusion, count = GaussianDiffusion(256), 1 << 17
    generators = generators_of(0)
    start = samplers.noise_like(torch.empty(1, count, dtype=torch.float64), generators)
    x = samplers.ddpm(diffusion, optimal(diffusion), start, generators, clip=False)
    # Of the variance of x_{t-1} given x_t, DDPM leaves out the part that comes from x0 given x_t. What a step lacks
    # reaches the video times the squared slope of E[x0 | x_{t-1}], which is at most 1 for a deviation below 1.
    abar = diffusion.alphas_cumprod
    unknown = DEVIATION**2 * (1 - abar) / (abar * DEVIATION**2 + 1 - abar)
    lacking = (diffusion.posterior_mean_x0**2 * unknown).sum().item()
    variance = DEVIATION**2
    assert abs(x.mean().item() - MEAN) <= 5 * (variance / count) ** 0.5
    deficit = variance - x.var().item()
    sampling_error = 5 * variance * (2 / count) ** 0.5
    assert -sampling_error <= deficit <= lacking + sampling_error
    assert lacking < 0.1 * variance  # the bound says something


def affine(timesteps, steps):
    """Mean and deviation of what DDIM makes of x_T as the data have it: the map is affine, so two points tell it."""
    diffusion = GaussianDiffusion(timesteps)
    abar = diffusion.alphas_cumprod[-1].item()
    deviation = (abar * DEVIATION**2 + 1 - abar) ** 0.5
    x = abar**0.5 * MEAN + torch.tensor([[0.0], [deviation]], dtype=torch.float64)
    zero, one = samplers.ddim(diffusion, optimal(diffusion), x, generators_of(0, 0), steps=steps, clip=False)
    return zero.item(), abs(one.item() - zero.item())


def test_ddim_converges_to_mean_and_deviation_of_normal_data():
    """The mean is exact. The rest is a first-order method: halving the step halves the error of the deviation."""
    (mean, coarse), (_, middle), (_, fine) = (affine(1000, steps) for steps in (250, 500, 1000))
    amplified = GaussianDiffusion(1000).sqrt_recip_alphas_cumprod[-1].item()
    assert abs(mean - MEAN) <= 250 * OPERATIONS * EPS * amplified
    assert abs(fine - DEVIATION) <= 1.1 * abs(fine - middle)  # the error that is left is the last halving's gain
    assert abs(fine - middle) < 0.6 * abs(middle - coarse)


def oracle(diffusion, x0):
    """The network that knows the video."""

    def model(x, t):
        log_sigma = np.interp(
            t.double().numpy(), np.arange(diffusion.timesteps), diffusion.sqrt_recipm1_alphas_cumprod.log().numpy()
        )
        sigma = torch.from_numpy(np.exp(log_sigma)).to(x.dtype).view(-1, *(1,) * (x.ndim - 1))
        return ((1 + sigma**2).sqrt() * x - x0) / sigma

    return model


ENDS_IN_A_VIDEO = """DDIMScheduler DDIMParallelScheduler DDPMScheduler DDPMParallelScheduler
    DPMSolverMultistepScheduler DPMSolverSinglestepScheduler EulerAncestralDiscreteScheduler EulerDiscreteScheduler
    HeunDiscreteScheduler KDPM2AncestralDiscreteScheduler KDPM2DiscreteScheduler LMSDiscreteScheduler
    UniPCMultistepScheduler""".split()
ENDS_AT_LEVEL_0 = ["DEISMultistepScheduler", "SASolverScheduler"]


@pytest.mark.filterwarnings("ignore::DeprecationWarning:diffusers")
@pytest.mark.filterwarnings("ignore::DeprecationWarning:numpy")
@pytest.mark.parametrize("name", ["ddpm", "ddim", *(f"diffusers:{name}" for name in ENDS_IN_A_VIDEO + ENDS_AT_LEVEL_0)])
def test_with_the_true_noise_every_sampler_finds_the_video_and_samples_do_not_mix(name):
    diffusion, sampler, steps = GaussianDiffusion(64), samplers.sampler_named(name), 16
    x0 = torch.rand(3, 3, 2, 4, 4, generator=torch.Generator().manual_seed(0)) * 2 - 1

    def made(*which):
        generators = generators_of(*which)
        noise = samplers.noise_like(torch.empty(len(which), 3, 2, 4, 4), generators)
        return sampler(diffusion, oracle(diffusion, x0[list(which)]), noise, generators, steps=steps)

    together = made(0, 1, 2)
    # Errors of the first steps, where sigma is large, shrink with sigma; those of the last ones stay.
    bound = steps * OPERATIONS * torch.finfo(torch.float32).eps
    if name.removeprefix("diffusers:") in ENDS_AT_LEVEL_0:
        bound += TEN_SIGMA * diffusion.sqrt_recipm1_alphas_cumprod[0].item()
    assert (together - x0).abs().max() <= bound
    assert torch.equal(together, torch.cat([made(0), made(1), made(2)]))
    assert torch.equal(together[1:], made(1, 2))


@pytest.mark.parametrize(
    ("name", "eta", "said"),
    [
        ("euler", None, "sampler must be ddpm, ddim or diffusers:<scheduler class>, got 'euler'"),
        ("ddpm", 0.5, "eta belongs to sampler 'ddim', got eta=0.5 with 'ddpm'"),
        ("ddim", 1.5, "eta must be in"),
        ("diffusers:NoScheduler", None, "has no scheduler 'NoScheduler'"),
        ("diffusers:UNet2DModel", None, "has no scheduler 'UNet2DModel'"),
        ("diffusers:FlowMatchEulerDiscreteScheduler", None, "cannot follow the noise levels"),
        ("diffusers:CogVideoXDDIMScheduler", None, "cannot follow the noise levels"),
        ("diffusers:PNDMScheduler", None, "diverges"),
    ],
)
def test_names_that_are_no_sampler(name, eta, said):
    with pytest.raises(ValueError, match=re.escape(said)):
        samplers.sampler_named(name, eta)


@pytest.mark.parametrize("name", ["DDIMInverseScheduler", "TCDScheduler"])
def test_schedulers_that_do_not_begin_with_pure_noise_are_refused(name):
    with pytest.raises(ValueError, match=f"{name} begins at level"):
        sampler = samplers.sampler_named(f"diffusers:{name}")
        sampler(GaussianDiffusion(256), bent, torch.zeros(1, 1, 1, 1, 1), generators_of(0), steps=10)


@pytest.mark.parametrize(("start", "steps"), [(255, None), (255, 50), (255, 1), (99, 7), (0, 1)])
def test_levels_begin_at_the_start_and_are_evenly_spaced(start, steps):
    levels = samplers.levels_down(start, steps)
    assert levels[0] == start
    assert len(levels) == (start + 1 if steps is None else steps)
    gaps = -np.diff([*levels, -1])
    assert gaps.min() >= 1
    assert gaps.max() - gaps.min() <= 1


@pytest.mark.parametrize("steps", [0, 257, 2.0])
def test_a_wrong_number_of_steps_is_named(steps):
    with pytest.raises(ValueError, match="steps must be a whole number from 1 to 256, got"):
        samplers.ddim(GaussianDiffusion(256), bent, torch.zeros(1, 1), generators_of(0), steps=steps)


def test_one_generator_per_sample():
    with pytest.raises(ValueError, match="generators: expected one per sample of x, 2, got 1"):
        samplers.ddpm(GaussianDiffusion(4), bent, torch.zeros(2, 1), generators_of(0))
