"""Linear attention over the frames of each pixel: memory linear in the number of frames, no relative bias."""

import torch
from einops import rearrange
from torch import Tensor, nn

from ssmvdm.temporal.attention import frame_heads
from ssmvdm.temporal.registry import register


class TemporalLinearAttention(nn.Module):
    """out = softmax_features(q) / sqrt(dim_head) @ (softmax_frames(k)^T v) (Shen et al., Efficient Attention, eq. 7).

    Every pixel for itself: (b, c, f, h, w) -> (b, c, f, h, w). q and k carry a rotary embedding before their softmax.
    With `norm` it is the attention of norm(x), keeping x in its place.
    """

    absorbs_norm = True

    def __init__(self, channels: int, heads: int = 8, dim_head: int = 64, rotary: bool = True):
        super().__init__()
        self.heads, self.rotary = heads, rotary
        self.to_qkv = nn.Linear(channels, 3 * heads * dim_head, bias=False)
        self.to_out = nn.Linear(heads * dim_head, channels, bias=False)

    def forward(
        self,
        x: Tensor,
        position_bias: Tensor | None = None,
        focus_present: Tensor | None = None,
        norm: nn.Module | None = None,
    ) -> Tensor:
        b, _, _, h, w = x.shape
        q, k, v = frame_heads(x, self.to_qkv.weight, self.heads, self.rotary, norm)
        q = q.softmax(dim=-1) * q.shape[-1] ** -0.5
        context = torch.einsum("nhfd,nhfe->nhde", k.softmax(dim=-2), v)  # (n, heads, dim_head, dim_head)
        out = torch.einsum("nhfd,nhde->nhfe", q, context)
        out = self.to_out(rearrange(out, "n heads f d -> n f (heads d)"))
        return rearrange(out, "(b h w) f c -> b c f h w", b=b, h=h, w=w)


@register("linear-attention")
def _build(channels, config):
    return TemporalLinearAttention(channels, config.heads, config.dim_head)
