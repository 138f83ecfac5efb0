"""Videos from a trained network, sample by sample the same whatever the batch.

Sample i of a seed is a function of (seed, i): its noise comes from a generator of its own. Beside it in a batch the
network computes the same numbers to rounding only (matrix products are split by size), so a batch of another size gives
the same noise bit for bit and the same video to rounding.
"""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
from torch import Tensor

from ssmvdm.diffusion import Denoiser, GaussianDiffusion, to_model_range, to_unit_range
from ssmvdm.samplers import Progress, ddim, levels_down, noise_like, sampler_named
from ssmvdm.unet3d import UNet3D

LARGEST_BATCH = 8  # unless the caller says


def sample_generator(seed: int, index: int) -> torch.Generator:
    """The generator of sample `index` of this seed, on the CPU: the same numbers on every device.

    torch's CPU generator looks at 32 bits of its seed. Indices count upwards from the seed's hash, so that no two of
    fewer than 2^32 samples share them, which two hashes of (seed, index) might.
    """
    start = int(np.random.SeedSequence(seed).generate_state(1)[0])
    return torch.Generator().manual_seed((start + index) % 2**32)


def sample_videos(
    model: UNet3D,
    diffusion: GaussianDiffusion,
    count: int,
    frames: int,
    size: int,
    *,
    sampler: str = "ddpm",
    steps: int | None = None,
    eta: float | None = None,
    seed: int = 0,
    batch: int = LARGEST_BATCH,
    cond: Tensor | None = None,
    guidance: float = 1.0,
    progress: Progress = iter,
) -> Iterator[np.ndarray]:
    """Samples 0 .. count - 1 of the seed, each (channels, frames, size, size) float32 in [0, 1].

    sampler, steps, eta: as `ssmvdm.samplers.sampler_named` and `ddim` say; steps None visits all levels.
    frames: any number, more than the network was trained on too.
    cond: (count, cond_dim), what a conditional network is to show; None draws from it unconditionally.
    guidance: eps_null + guidance (eps_cond - eps_null); 1 is the conditional prediction itself.
    progress wraps the levels of each batch. Raises ValueError naming the argument, before any work.
    """
    sample = batch_sampler(model, diffusion, frames, size, sampler, steps, eta, seed, cond, guidance)
    _check_whole("count", count, 0)
    _check_whole("batch", batch, 1)
    if cond is not None and len(cond) != count:
        raise ValueError(f"cond must have one row per sample, {count}, got {tuple(cond.shape)}")
    return (video for indices in batches(count, batch) for video in sample(indices, progress))


def batches(count: int, batch: int) -> list[range]:
    """The indices 0 .. count - 1 in batches."""
    return [range(first, min(first + batch, count)) for first in range(0, count, batch)]


def batch_sampler(
    model: UNet3D,
    diffusion: GaussianDiffusion,
    frames: int,
    size: int,
    sampler: str = "ddpm",
    steps: int | None = None,
    eta: float | None = None,
    seed: int = 0,
    cond: Tensor | None = None,
    guidance: float = 1.0,
) -> Callable[[Sequence[int], Progress], np.ndarray]:
    """A function (indices, progress) -> those samples, (len(indices), channels, frames, size, size).

    Arguments as of `sample_videos`; cond has a row for every index that will be asked for. What is wrong with them is
    said here, as ValueError, and not by the function.
    """
    channels, multiple = model.config.channels, model.config.frame_multiple
    _check_whole("frames", frames, 1)
    _check_whole("seed", seed, 0)
    if not isinstance(size, int) or size < 1 or size % multiple:
        raise ValueError(f"size must be a positive multiple of {multiple} for this network, got {size!r}")
    chosen = sampler_named(sampler, eta)
    levels_down(diffusion.timesteps - 1, steps)
    _check_guidance(model, cond, guidance)

    def sample(indices: Sequence[int], progress: Progress) -> np.ndarray:
        generators = [sample_generator(seed, index) for index in indices]
        like = torch.empty(len(indices), channels, frames, size, size, device=next(model.parameters()).device)
        noise = noise_like(like, generators)
        predict = denoiser(model, None if cond is None else cond[list(indices)], guidance)
        return finished(chosen(diffusion, predict, noise, generators, steps=steps, progress=progress), indices)

    return sample


def interpolator(
    model: UNet3D,
    diffusion: GaussianDiffusion,
    first: np.ndarray,
    second: np.ndarray,
    *,
    count: int,
    level: int,
    steps: int | None = None,
    eta: float = 0.0,
    seed: int = 0,
) -> Callable[[Sequence[int], Progress], np.ndarray]:
    """A function (indices, progress) -> videos between two, mixed at a level of noise and denoised (DDPM, section 4.3).

    Video i begins as q_sample((1 - share) first + share second, level, noise), share = i / (count - 1), with one noise
    for all i, which is what mixing the two noised videos gives. So videos 0 and count - 1 reconstruct the two.
    first, second: (channels, frames, size, size) in [0, 1]. level: 0 .. T - 1; the higher, the less is left of them.
    """
    channels, multiple = model.config.channels, model.config.frame_multiple
    for name, video in (("first", first), ("second", second)):
        if video.ndim != 4 or video.shape[0] != channels or video.shape[2] % multiple or video.shape[3] % multiple:
            expected = f"({channels}, frames, height, width), height and width multiples of {multiple}"
            raise ValueError(f"{name} must be {expected}, got {video.shape}")
        if not (video.min() >= 0 and video.max() <= 1):
            raise ValueError(f"{name} must be in [0, 1], got values from {video.min()} to {video.max()}")
    if first.shape != second.shape:
        raise ValueError(f"first and second must have one shape, got {first.shape} and {second.shape}")
    if not isinstance(level, int) or not 0 <= level < diffusion.timesteps:
        raise ValueError(f"level must be a whole number from 0 to {diffusion.timesteps - 1}, got {level!r}")
    _check_whole("count", count, 2)
    levels_down(level, steps)
    device = next(model.parameters()).device
    ends = [to_model_range(torch.from_numpy(video).to(device, torch.float32)) for video in (first, second)]

    def sample(indices: Sequence[int], progress: Progress) -> np.ndarray:
        mixed = torch.stack([torch.lerp(*ends, index / (count - 1)) for index in indices])
        generators = [sample_generator(seed, 0) for _ in indices]
        t = torch.full((len(indices),), level, device=device)
        x = diffusion.q_sample(mixed, t, noise_like(mixed, generators))
        options = {"steps": steps, "start": level, "eta": eta, "progress": progress}
        return finished(ddim(diffusion, denoiser(model), x, generators, **options), indices)

    return sample


def denoiser(model: UNet3D, cond: Tensor | None = None, guidance: float = 1.0) -> Denoiser:
    """The network as a function of (x, t) alone. A conditional network without `cond` sees its null embedding.

    A network of another type than x's computes in its own: a sampler's arithmetic between its calls stays x's.
    """
    dtype = next(model.parameters()).dtype

    def predict(x: Tensor, t: Tensor) -> Tensor:
        if cond is not None:
            return model.guided(x, t, cond.to(x.device, dtype), guidance)
        if model.config.cond_dim is None:
            return model(x, t)
        nothing = x.new_zeros(x.shape[0], model.config.cond_dim)
        return model(x, t, nothing, cond_drop=torch.ones(x.shape[0], dtype=torch.bool, device=x.device))

    return lambda x, t: predict(x.to(dtype), t).to(x.dtype)


def finished(x: Tensor, indices: Sequence[int]) -> np.ndarray:
    """Videos in [-1, 1] as float32 arrays in [0, 1]; ArithmeticError for what is not finite."""
    for index, video in zip(indices, x, strict=True):
        if not video.isfinite().all():
            raise ArithmeticError(f"sample {index} is not finite: the network or the sampler diverged")
    return to_unit_range(x).clamp(0, 1).float().cpu().numpy()


def _check_guidance(model: UNet3D, cond: Tensor | None, guidance: float) -> None:
    if cond is not None and model.config.cond_dim is None:
        raise ValueError("cond needs a network with cond_dim, this one has none")
    if guidance != 1 and cond is None:
        raise ValueError(f"guidance needs cond to lead to, got guidance={guidance} without it")


def _check_whole(name: str, value: int, least: int) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or value < least:
        raise ValueError(f"{name} must be a whole number of at least {least}, got {value!r}")
