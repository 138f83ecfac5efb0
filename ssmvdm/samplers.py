"""From noise to videos: DDPM, DDIM, and any scheduler of diffusers that can follow the process.

A sampler is a function (diffusion, model, x, generators, *, steps, clip, progress) -> videos in [-1, 1]. x is (b, ...)
pure noise; generators has one torch.Generator per sample, which draws all later noise of that sample, so that a sample
does not depend on its neighbours in the batch.
"""

import functools
import inspect
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

if TYPE_CHECKING:
    from ssmvdm.diffusion import Denoiser, GaussianDiffusion

Progress = Callable[[Iterable[int]], Iterable[int]]
Sampler = Callable[..., Tensor]
FROM_DIFFUSERS = "diffusers:"
NAMES = f"ddpm, ddim or {FROM_DIFFUSERS}<scheduler class>"


def sampler_named(name: str, eta: float | None = None) -> Sampler:
    """The sampler of this name: "ddpm", "ddim" or "diffusers:DPMSolverMultistepScheduler", say.

    eta: share of DDPM's noise that "ddim" adds, in [0, 1], None for 0; the others have none.
    """
    if eta is not None and name != "ddim":
        raise ValueError(f"eta belongs to sampler 'ddim', got eta={eta} with {name!r}")
    if name == "ddpm":
        return ddpm
    if name == "ddim":
        eta = 0.0 if eta is None else eta
        if not 0.0 <= eta <= 1.0:
            raise ValueError(f"eta must be in [0, 1], got {eta}")
        return functools.partial(ddim, eta=eta)
    if name.startswith(FROM_DIFFUSERS):
        return functools.partial(scheduled, _scheduler_class(name.removeprefix(FROM_DIFFUSERS)))
    raise ValueError(f"sampler must be {NAMES}, got {name!r}")


def levels_down(start: int, steps: int | None = None) -> list[int]:
    """`steps` of the levels start, ..., 0, evenly spaced and beginning with start; None means all of them.

    The first level is always visited, because x is the noise of that level and of no other ("trailing" spacing; Lin et
    al. 2023, arXiv 2305.08891, section 3.3).
    """
    count = start + 1
    steps = count if steps is None else steps
    if not isinstance(steps, int) or not 1 <= steps <= count:
        raise ValueError(f"steps must be a whole number from 1 to {count}, got {steps!r}")
    return [round(count * (steps - i) / steps) - 1 for i in range(steps)]


@torch.no_grad()
def ddim(
    diffusion: "GaussianDiffusion",
    model: "Denoiser",
    x: Tensor,
    generators: Sequence[torch.Generator | None],
    *,
    steps: int | None = None,
    start: int | None = None,
    eta: float = 0.0,
    clip: bool = True,
    progress: Progress = iter,
) -> Tensor:
    """Song et al. 2020 (arXiv 2010.02502), eq. 12, with the noise derived anew from the clipped video.

    x: (b, ...) at level `start`, where None means T - 1, pure noise. steps: how many of the levels start .. 0 are
    visited. eta: 0 is deterministic; 1 draws from the posterior q(x_below | x, x0), whatever levels lie between.
    clip: the predicted videos, as `diffusion` says. progress wraps the levels (tqdm, say).
    """
    _check_generators(x, generators)
    levels = levels_down(diffusion.timesteps - 1 if start is None else start, steps)
    for level, below in zip(progress(levels), [*levels[1:], -1], strict=True):
        x0 = _predicted_video(diffusion, model, x, level, clip)
        x = _step_down(diffusion, x, x0, level, below, eta, generators)
    return x


def ddpm(
    diffusion: "GaussianDiffusion",
    model: "Denoiser",
    x: Tensor,
    generators: Sequence[torch.Generator | None],
    **options,
) -> Tensor:
    """Ancestral sampling (Ho et al. 2020, algorithm 2), over a subset of the levels too. Options as of `ddim`.

    The mean and variance of DDIM with eta = 1 are those of q(x_below | x, x0) (DDIM, section 4.1).
    """
    return ddim(diffusion, model, x, generators, eta=1.0, **options)


def _predicted_video(diffusion: "GaussianDiffusion", model: "Denoiser", x: Tensor, level: int, clip: bool) -> Tensor:
    t = torch.full((x.shape[0],), level, device=x.device)
    x0 = diffusion.predict_x0(x, t, diffusion.predict_noise(model, x, t))
    return diffusion.threshold(x0) if clip else x0


def _step_down(diffusion, x: Tensor, x0: Tensor, level: int, below: int, eta: float, generators) -> Tensor:
    """x at level `below` (-1: the video) from x at `level` and the video predicted there: DDIM eq. 12 and 16."""
    abar = diffusion.alphas_cumprod[level].item()
    abar_below = diffusion.alphas_cumprod[below].item() if below >= 0 else 1.0
    variance = eta**2 * (1 - abar_below) / (1 - abar) * (1 - abar / abar_below)
    # (1 - abar_below - variance) without the difference, which cancels where abar is small.
    kept = (1 - abar_below) * (1 - eta**2 + eta**2 * (1 - abar_below) * abar / (abar_below * (1 - abar)))
    of_x = (kept / (1 - abar)) ** 0.5
    x = (abar_below**0.5 - of_x * abar**0.5) * x0 + of_x * x
    return x + variance**0.5 * noise_like(x, generators) if variance > 0 else x


@torch.no_grad()
def scheduled(
    scheduler_class: type,
    diffusion: "GaussianDiffusion",
    model: "Denoiser",
    x: Tensor,
    generators: Sequence[torch.Generator],
    *,
    steps: int | None = None,
    clip: bool = True,
    progress: Progress = iter,
) -> Tensor:
    """Sampling as a scheduler of diffusers does it, on this process's noise levels. Arguments as of `ddim`.

    Predicted videos are clipped by `diffusion`, before the scheduler sees the noise that belongs to them: schedulers
    differ in whether and how they clip. Some visit a level more than once, or stop between two. Some (DEIS, SA) end at
    level 0 and leave its noise in the video.
    """
    _check_generators(x, generators)
    count = len(levels_down(diffusion.timesteps - 1, steps))
    scheduler = _configured(scheduler_class, diffusion, count, x.device)
    takes_generator = "generator" in inspect.signature(scheduler.step).parameters
    extra = {"generator": list(generators)} if takes_generator else {}
    x = x * scheduler.init_noise_sigma
    for i in progress(range(len(scheduler.timesteps))):
        t = scheduler.timesteps[i]
        x_t = scheduler.scale_model_input(x, t).to(x.dtype)
        noise = diffusion.predict_noise(model, x_t, t.to(x.device).expand(x.shape[0]))
        noise = _noise_of_clipped(diffusion, x_t, noise, float(t)) if clip else noise
        x = scheduler.step(noise, t, x, **extra, return_dict=False)[0].to(x.dtype)
    return x


def _noise_of_clipped(diffusion: "GaussianDiffusion", x_t: Tensor, noise: Tensor, t: float) -> Tensor:
    """The noise that leads from the clipped video to x_t. Between two levels log(sigma) is linear in t."""
    log_sigmas = diffusion.sqrt_recipm1_alphas_cumprod.log().numpy()
    sigma = float(np.exp(np.interp(t, np.arange(diffusion.timesteps), log_sigmas)))
    scale = (1 + sigma**2) ** 0.5  # x_t = (x0 + sigma noise) / scale
    x0 = diffusion.threshold(scale * x_t - sigma * noise)
    return (scale * x_t - x0) / sigma


def _scheduler_class(name: str) -> type:
    """The class, if it takes the noise levels of a trained network; ValueError that says what is missing if not."""
    try:
        import diffusers
    except ImportError:
        remedy = "pip install 'ssmvdm-kernels[diffusers]'"
        raise ValueError(f"sampler {FROM_DIFFUSERS}{name} needs diffusers: {remedy}") from None
    found: Any = getattr(diffusers, name, None)
    is_class = inspect.isclass(found)
    if not is_class or "Scheduler" not in name:
        raise ValueError(f"sampler: diffusers {diffusers.__version__} has no scheduler {name!r}")
    try:
        options = inspect.signature(found.__init__).parameters
        step = list(inspect.signature(found.step).parameters)
    except (ImportError, AttributeError) as error:  # what diffusers puts in place of a class whose package is missing
        raise ValueError(f"sampler: {name} cannot be used: {' '.join(str(error).split())}") from None
    takes_levels = {"trained_betas", "prediction_type"} <= set(options) and "snr_shift_scale" not in options
    if not takes_levels or step[1:4] != ["model_output", "timestep", "sample"]:
        raise ValueError(f"sampler: {name} cannot follow the noise levels of a network that predicts noise")
    if name == "PNDMScheduler":
        raise ValueError("sampler: PNDMScheduler extrapolates noise linearly over levels, and from pure noise diverges")
    return found


def _configured(scheduler_class: type, diffusion: "GaussianDiffusion", steps: int, device: torch.device):
    """The scheduler on this process's levels, beginning with the last of them and ending in a video."""
    wanted = {
        "num_train_timesteps": diffusion.timesteps,
        "trained_betas": diffusion.betas.tolist(),
        "prediction_type": "epsilon",
        "timestep_spacing": "trailing",
        "set_alpha_to_one": True,
        "clip_sample": False,
    }
    options = inspect.signature(scheduler_class.__init__).parameters
    scheduler = scheduler_class(**{name: value for name, value in wanted.items() if name in options})
    scheduler.set_timesteps(steps, device=device)
    first, last = float(scheduler.timesteps[0]), diffusion.timesteps - 1
    if first != last:
        raise ValueError(f"sampler: {scheduler_class.__name__} begins at level {first:g}, pure noise is level {last}")
    return scheduler


def noise_like(x: Tensor, generators: Sequence[torch.Generator | None]) -> Tensor:
    """Standard normal noise of x's shape, type and device; sample i from generator i, or torch's own for None."""
    drawn = [
        torch.randn(x.shape[1:], generator=g, dtype=x.dtype, device=x.device if g is None else g.device)
        for g in generators
    ]
    return torch.stack(drawn).to(x.device)


def _check_generators(x: Tensor, generators: Sequence[torch.Generator | None]) -> None:
    if len(generators) != x.shape[0]:
        raise ValueError(f"generators: expected one per sample of x, {x.shape[0]}, got {len(generators)}")
