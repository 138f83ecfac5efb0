"""Attention over the frames of each pixel, as the paper's baseline has it: rotary, shared T5 bias, focus-present.

`attend` has two backends. "einsum" does what the published code does, score matrix and all, and is the reference for
memory; "sdpa" hands the same bias to torch's fused attention and keeps no score matrix. They agree to rounding.
"""

import torch
import torch.nn.functional as F
from einops import rearrange
from torch import Tensor, nn

from ssmvdm import lean
from ssmvdm.temporal.position import apply_rotary
from ssmvdm.temporal.registry import register
from ssmvdm_kernels.once import differentiable_once

# The grid axis that torch's fused CUDA kernels lay the batch on ends here; batch * height * width gets there quickly.
MAX_FUSED_BATCH = 65_535
# Scores that the backward of _BiasedAttention holds at a time, in elements: 4 MiB of float32 stay in a core's cache.
SCORES_AT_A_TIME = 2**20


def attend(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None = None, backend: str = "sdpa") -> Tensor:
    """softmax(q k^T / sqrt(dim_head) + bias) v.

    q, k, v: (batch, heads, tokens, dim_head); bias: (heads, tokens, tokens).
    """
    if backend == "sdpa":
        bias = None if bias is None else bias.to(q.dtype)
        needs_bias_gradient = bias is not None and bias.requires_grad and torch.is_grad_enabled()
        # Where the bias is learned, only the fused kernels for CUDA have a gradient for it. Anywhere else torch would
        # quietly go back to a full score matrix.
        if needs_bias_gradient and not q.is_cuda:
            return _BiasedAttention.apply(q, k, v, bias)
        return _fused(q, k, v, bias)
    scores = torch.einsum("bhid,bhjd->bhij", q * q.shape[-1] ** -0.5, k)
    if bias is not None:
        scores = scores + bias
    scores = scores - scores.amax(dim=-1, keepdim=True).detach()
    return torch.einsum("bhij,bhjd->bhid", scores.softmax(dim=-1), v)


def _fused(q: Tensor, k: Tensor, v: Tensor, bias: Tensor | None) -> Tensor:
    mask = None if bias is None else bias[None]
    if q.shape[0] <= MAX_FUSED_BATCH:
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask)
    pieces = zip(*(tensor.split(MAX_FUSED_BATCH) for tensor in (q, k, v)), strict=True)
    return torch.cat([F.scaled_dot_product_attention(*piece, attn_mask=mask) for piece in pieces])


class _BiasedAttention(torch.autograd.Function):
    """Fused attention with a gradient for the bias: keeps q, k, v and the output, recomputes scores piece by piece.

    With P = softmax(S), S = q k^T / sqrt(d) + bias and g the gradient of the output:
    dS = P * (g v^T - rowsum(g * out)); dq = dS k / sqrt(d); dk = dS^T q / sqrt(d); dv = P^T g; dbias = sum_batch dS
    (Dao et al., FlashAttention, appendix B.2).
    """

    @staticmethod
    def forward(ctx, q, k, v, bias):
        out = _fused(q, k, v, bias.detach())  # a mask that wants a gradient is refused by the fused kernels
        # In the layout that the projection after it takes as it is, so that the two keep one tensor and not two.
        out = out.transpose(1, 2).contiguous().transpose(1, 2)
        ctx.save_for_backward(q, k, v, bias, out)
        return out

    @staticmethod
    @differentiable_once
    def backward(ctx, gradient):
        q, k, v, bias, out = ctx.saved_tensors
        scale = q.shape[-1] ** -0.5
        wide = torch.promote_types(bias.dtype, torch.float32)
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        dbias = torch.zeros_like(bias, dtype=wide)
        rows = max(1, SCORES_AT_A_TIME // max(1, bias.numel()))
        for start in range(0, q.shape[0], rows):
            piece = slice(start, start + rows)
            q_, k_, v_, g_, out_ = (tensor[piece].to(wide) for tensor in (q, k, v, gradient, out))
            probabilities = (q_ @ k_.transpose(-1, -2)).mul_(scale).add_(bias).softmax(dim=-1)
            dv[piece] = probabilities.transpose(-1, -2) @ g_
            dscores = (g_ @ v_.transpose(-1, -2)).sub_((g_ * out_).sum(-1, keepdim=True)).mul_(probabilities)
            dbias += dscores.sum(0)
            dq[piece] = (dscores @ k_).mul_(scale)
            dk[piece] = (dscores.transpose(-1, -2) @ q_).mul_(scale)
        return dq, dk, dv, dbias.to(bias.dtype)


class TemporalAttention(nn.Module):
    """Multi-head self-attention over frames, every pixel for itself: (b, c, f, h, w) -> (b, c, f, h, w).

    forward(x, position_bias=None, focus_present=None): position_bias (heads, f, f) is added to the scores;
    focus_present (b,) bool marks samples whose frames see only themselves (Ho et al., Video Diffusion Models,
    section 3: joint training on images). With `norm` it is the attention of norm(x), keeping x in its place.
    """

    absorbs_norm = True

    def __init__(self, channels: int, heads: int = 8, dim_head: int = 64, rotary: bool = True, backend: str = "sdpa"):
        super().__init__()
        self.heads, self.rotary, self.backend = heads, rotary, backend
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
        out = attend(q, k, v, position_bias, self.backend)
        if focus_present is not None:
            # The softmax over a single frame is 1: a sample that sees only itself gets its own value, exactly.
            alone = focus_present.repeat_interleave(h * w, output_size=b * h * w)[:, None, None, None]
            out = torch.where(alone, v, out)
        out = self.to_out(rearrange(out, "n heads f d -> n f (heads d)"))
        return rearrange(out, "(b h w) f c -> b c f h w", b=b, h=h, w=w)


ROWS = {"frames": "b c f h w -> (b h w) f c", "pixels": "b c f h w -> (b f) (h w) c"}


def project_heads(
    x: Tensor, weight: Tensor, heads: int, along: str, norm: nn.Module | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v of x (b, c, f, h, w), or of norm(x), and a joint weight: each (rows, heads, tokens, dim_head), where
    tokens are the "frames" of a pixel or the "pixels" of a frame.

    Three products and not one: a value that is a slice of a joint result would keep all of it alive for backward.
    """
    if norm is None:
        rows = rearrange(x, ROWS[along]).contiguous()
        parts = tuple(F.linear(rows, part) for part in weight.chunk(3))
    else:
        parts = lean.norm_heads(x, norm.gain, norm.eps, weight, along)
    q, k, v = (rearrange(part, "n f (heads d) -> n heads f d", heads=heads) for part in parts)
    return q, k, v


def frame_heads(
    x: Tensor, weight: Tensor, heads: int, rotary: bool, norm: nn.Module | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """q, k and v over the frames of each pixel, each (b h w, heads, f, dim_head), of x (b, c, f, h, w) or of norm(x); q
    and k turned by the rotary embedding if asked for."""
    q, k, v = project_heads(x, weight, heads, "frames", norm)
    return (apply_rotary(q), apply_rotary(k), v) if rotary else (q, k, v)


@register("attention")
def _build(channels, config):
    return TemporalAttention(channels, config.heads, config.dim_head, backend=config.attention_backend)
