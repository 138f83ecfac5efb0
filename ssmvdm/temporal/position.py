"""What tells attention over frames about time: rotary embedding and the T5 relative bias."""

import math

import torch
from torch import Tensor, nn

ROTARY_BASE = 10_000.0
MAX_ROTARY_DIM = 32


def rotary_dim(dim_head: int) -> int:
    """How many of a head's features are rotated."""
    return min(MAX_ROTARY_DIM, dim_head)


def rotary_frequencies(dim: int, device: torch.device | None = None, dtype: torch.dtype = torch.float32) -> Tensor:
    """Angle per frame of each pair of features, base ** (-2 i / dim): (dim / 2,)."""
    return 1 / ROTARY_BASE ** (torch.arange(0, dim, 2, device=device, dtype=dtype) / dim)


def apply_rotary(x: Tensor) -> Tensor:
    """Turn neighbouring features (2i, 2i + 1) of frame t by the angle t * frequency_i (Su et al., RoFormer, eq. 34).

    x: (..., frames, dim_head); the first min(32, dim_head) features turn, the others pass. The angles have no state, so
    that casting a model to half precision does not round them; they are float64, as that of frame 1024 is a thousand
    radians, of which float32 would lose the fourth decimal place.
    """
    frames, dim = x.shape[-2], rotary_dim(x.shape[-1])
    precision = torch.float32 if x.device.type == "mps" else torch.float64  # which Metal does not have
    positions = torch.arange(frames, device=x.device, dtype=precision)
    angles = positions[:, None] * rotary_frequencies(dim, x.device, precision)  # (frames, dim / 2)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    even, odd = x[..., :dim].unflatten(-1, (-1, 2)).unbind(-1)  # each (..., frames, dim / 2)
    turned = torch.stack((even * cos - odd * sin, odd * cos + even * sin), dim=-1).flatten(-2)
    return turned if dim == x.shape[-1] else torch.cat((turned, x[..., dim:]), dim=-1)


class RelativePositionBias(nn.Module):
    """T5's relative position bias (Raffel et al. 2020, section 2.1): one learned value per head and distance bucket.

    Half of the buckets are for the past, half for the future. Of each half, the first half is one distance each, the
    rest grows logarithmically up to `max_distance`, beyond which all distances share the last one.
    forward(frames) -> (heads, frames, frames), indexed [head, query, key].
    """

    def __init__(self, heads: int, buckets: int = 32, max_distance: int = 32):
        super().__init__()
        self.buckets, self.max_distance = buckets, max_distance
        self.table = nn.Embedding(buckets, heads)

    def forward(self, frames: int) -> Tensor:
        time = torch.arange(frames, device=self.table.weight.device)
        return self.table(self.bucket(time[:, None] - time[None, :])).permute(2, 0, 1)

    def bucket(self, lag: Tensor) -> Tensor:
        """Bucket of lag = query time - key time: an integer tensor of lag's shape."""
        half = self.buckets // 2
        exact = half // 2
        distance = lag.abs()
        growth = (half - exact) / math.log(self.max_distance / exact)
        # Clamped only so that distance 0, which the exact half answers, does not take a logarithm of zero.
        logarithmic = exact + (torch.log(distance.clamp(min=exact).float() / exact) * growth).long()
        near_or_far = torch.where(distance < exact, distance, logarithmic.clamp(max=half - 1))
        return near_or_far + half * (lag < 0)
