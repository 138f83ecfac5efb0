"""The diffusion process: DDPM (Ho et al. 2020, arXiv 2006.11239) with the cosine schedule of Nichol and Dhariwal 2021.

A `GaussianDiffusion` is constants. Everything it does is a function of (model, x, t, noise): no hidden randomness, no
reference to a network. Videos are in [-1, 1]; a model is any callable (x_t, t, **kwargs) -> predicted noise.
"""

from collections.abc import Callable, Iterable
from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvdm import samplers

Denoiser = Callable[..., Tensor]
LOSSES = {"l1": F.l1_loss, "l2": F.mse_loss}


def to_model_range(video: Tensor) -> Tensor:
    """[0, 1] -> [-1, 1]."""
    return video * 2 - 1


def to_unit_range(video: Tensor) -> Tensor:
    """[-1, 1] -> [0, 1]."""
    return (video + 1) * 0.5


def cosine_betas(timesteps: int, offset: float = 0.008, max_beta: float = 0.9999) -> Tensor:
    """beta_t = 1 - abar_t / abar_{t-1} with abar_t ~ cos^2((t/T + s) / (1 + s) pi/2) (arXiv 2102.09672, eq. 17).

    (timesteps,) float64 on the CPU.
    """
    progress = torch.linspace(0, 1, timesteps + 1, dtype=torch.float64, device="cpu")
    alphas_cumprod = torch.cos((progress + offset) / (1 + offset) * torch.pi * 0.5) ** 2
    return (1 - alphas_cumprod[1:] / alphas_cumprod[:-1]).clamp(0, max_beta)


class GaussianDiffusion:
    """Forward process, losses and ancestral sampling for a network that predicts the noise.

    timesteps: T. loss: "l2" or "l1", the mean over all elements.
    dynamic_threshold: None clips predicted videos to [-1, 1]; a quantile in (0, 1] clips each sample to that quantile s
        of its absolute values, at least 1, and divides by s (Saharia et al., Imagen, section 2.3).

    The constants are float64 tables on the CPU, named as in the literature; t indexes them.

    Raises ValueError naming the argument, what was expected and what came. Nothing is broadcast. Whether steps exist is
    asked of t on the CPU alone: on a GPU the answer would have to be waited for.
    """

    def __init__(self, timesteps: int = 256, loss: str = "l2", dynamic_threshold: float | None = None):
        if not isinstance(timesteps, int) or timesteps < 1:
            raise ValueError(f"timesteps must be a positive integer, got {timesteps!r}")
        if loss not in LOSSES:
            raise ValueError(f"loss must be one of {', '.join(LOSSES)}, got {loss!r}")
        if dynamic_threshold is not None and not 0 < dynamic_threshold <= 1:
            raise ValueError(f"dynamic_threshold must be a quantile in (0, 1], got {dynamic_threshold}")
        self.timesteps, self.loss, self.dynamic_threshold = timesteps, loss, dynamic_threshold

        self.betas = cosine_betas(timesteps)
        self.alphas_cumprod = torch.cumprod(1 - self.betas, dim=0)
        previous = torch.cat((self.alphas_cumprod.new_ones(1), self.alphas_cumprod[:-1]))
        remaining = 1 - self.alphas_cumprod
        self.sqrt_alphas_cumprod = self.alphas_cumprod.sqrt()
        self.sqrt_one_minus_alphas_cumprod = remaining.sqrt()
        self.sqrt_recip_alphas_cumprod = self.alphas_cumprod.rsqrt()
        self.sqrt_recipm1_alphas_cumprod = (1 / self.alphas_cumprod - 1).sqrt()
        self.posterior_variance = self.betas * (1 - previous) / remaining
        # The variance of the last step is 0, and so its logarithm is clipped.
        self.posterior_log_variance = self.posterior_variance.clamp(min=1e-20).log()
        self.posterior_mean_x0 = self.betas * previous.sqrt() / remaining
        self.posterior_mean_xt = (1 - previous) * (1 - self.betas).sqrt() / remaining
        self._on_device: dict[tuple[str, torch.device, torch.dtype], Tensor] = {}

    def q_sample(self, x0: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """x_t = sqrt(abar_t) x0 + sqrt(1 - abar_t) noise (DDPM eq. 4). t: (b,) integer."""
        _check_shape("noise", noise, x0)
        return self._at("sqrt_alphas_cumprod", t, x0) * x0 + self._at("sqrt_one_minus_alphas_cumprod", t, x0) * noise

    def predict_x0(self, x_t: Tensor, t: Tensor, noise: Tensor) -> Tensor:
        """The video that would give x_t with this noise."""
        _check_shape("noise", noise, x_t)
        return (
            self._at("sqrt_recip_alphas_cumprod", t, x_t) * x_t
            - self._at("sqrt_recipm1_alphas_cumprod", t, x_t) * noise
        )

    def posterior(self, x0: Tensor, x_t: Tensor, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and clipped log variance of q(x_{t-1} | x_t, x0) (DDPM eq. 7); the last two (b, 1, ...)."""
        _check_shape("x0", x0, x_t)
        mean = self._at("posterior_mean_x0", t, x_t) * x0 + self._at("posterior_mean_xt", t, x_t) * x_t
        return mean, self._at("posterior_variance", t, x_t), self._at("posterior_log_variance", t, x_t)

    def predict_noise(self, model: Denoiser, x_t: Tensor, t: Tensor, **model_kwargs) -> Tensor:
        """What the model returns, which must be one noise for each value of x_t."""
        noise = model(x_t, t, **model_kwargs)
        _check_shape("what the model returns", noise, x_t)
        return noise

    def p_mean_variance(
        self, model: Denoiser, x_t: Tensor, t: Tensor, *, clip: bool = True, **model_kwargs
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Mean, variance and log variance of the model's p(x_{t-1} | x_t): the posterior at the video it predicts."""
        x0 = self.predict_x0(x_t, t, self.predict_noise(model, x_t, t, **model_kwargs))
        return self.posterior(self.threshold(x0) if clip else x0, x_t, t)

    def p_sample(
        self, model: Denoiser, x_t: Tensor, t: Tensor, noise: Tensor, *, clip: bool = True, **model_kwargs
    ) -> Tensor:
        """x_{t-1} = mean + exp(log variance / 2) noise, without noise at t = 0 (DDPM algorithm 2)."""
        _check_shape("noise", noise, x_t)
        mean, _, log_variance = self.p_mean_variance(model, x_t, t, clip=clip, **model_kwargs)
        is_last = (t == 0).view(-1, *(1,) * (x_t.ndim - 1))
        return torch.where(is_last, mean, mean + (0.5 * log_variance).exp() * noise)

    def training_loss(self, model: Denoiser, x0: Tensor, t: Tensor, noise: Tensor, **model_kwargs) -> Tensor:
        """Mean error of the predicted noise at step t (DDPM eq. 14): a scalar. x0 in [-1, 1]."""
        return LOSSES[self.loss](self.predict_noise(model, self.q_sample(x0, t, noise), t, **model_kwargs), noise)

    def sample(
        self,
        model: Denoiser,
        noise: Tensor,
        generator: torch.Generator | None = None,
        *,
        clip: bool = True,
        progress: Callable[[Iterable[int]], Iterable[int]] = iter,
        **model_kwargs,
    ) -> Tensor:
        """Ancestral sampling over all T steps from x_T = noise: videos in [-1, 1], of the noise's shape.

        generator draws the noise of each step; progress wraps the steps T-1 .. 0 (tqdm, say).
        """
        generators = [generator] * noise.shape[0]
        return samplers.ddpm(self, partial(model, **model_kwargs), noise, generators, clip=clip, progress=progress)

    def threshold(self, x0: Tensor) -> Tensor:
        """Predicted videos clipped as `dynamic_threshold` says."""
        if self.dynamic_threshold is None:
            return x0.clamp(-1, 1)
        magnitude = x0.detach().flatten(1).abs()
        # Not torch.quantile, which refuses more than 2^24 elements: one video of 64 frames at 512 x 512 has 50 million.
        position = self.dynamic_threshold * (magnitude.shape[1] - 1)
        lower = int(position)
        ordered = magnitude.sort(dim=1).values
        upper = min(lower + 1, magnitude.shape[1] - 1)
        limit = torch.lerp(ordered[:, lower], ordered[:, upper], position - lower).clamp(min=1)
        limit = limit.view(-1, *(1,) * (x0.ndim - 1))
        return x0.clamp(-limit, limit) / limit

    def _at(self, name: str, t: Tensor, x: Tensor) -> Tensor:
        """Table `name` at steps t, shaped to multiply x: (b, 1, ..., 1), float64 for float64 x, else float32."""
        if not isinstance(t, Tensor) or t.shape != x.shape[:1] or t.dtype not in (torch.int32, torch.int64):
            came = f"{tuple(t.shape)} {t.dtype}" if isinstance(t, Tensor) else repr(t)
            raise ValueError(f"t must be {tuple(x.shape[:1])} int64 or int32, got {came}")
        dtype = torch.float64 if x.dtype == torch.float64 else torch.float32
        key = (name, t.device, dtype)
        if key not in self._on_device:
            self._on_device[key] = getattr(self, name).to(t.device, dtype)
        try:
            values = self._on_device[key].index_select(0, t)  # table[t] would take -1 for the last step
        except IndexError:
            raise ValueError(f"t must be from 0 to {self.timesteps - 1}, got {t.tolist()}") from None
        return values.to(x.device).view(-1, *(1,) * (x.ndim - 1))


def _check_shape(name: str, value: Tensor, like: Tensor) -> None:
    if value.shape != like.shape:
        raise ValueError(f"{name} must be {tuple(like.shape)}, got {tuple(value.shape)}")
