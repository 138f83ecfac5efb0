"""The norm over channels and the linear attention over the pixels of each frame after it, in one formula.

    n = norm(x) gain;  q, k, v = W_qkv n;  Q = softmax_features(q), K = softmax_pixels(k);  S = K v^T / sqrt(d)
    y = W_out S^T Q + b
    o = S^T Q:  dQ = S do,  dS = Q do^T / sqrt(d),  dK = dS v,  dv = dS^T K,  then both softmaxes and the norm

Saved: x. A few frames at a time, everything from n to o is computed again.
Source of the attention: Shen et al., Efficient Attention (arXiv 1812.01243), equation 7.
"""

import torch
from torch import Tensor

from ssmvdm.lean.channel_norm import norm_gradients, normalised
from ssmvdm.lean.pieces import add_product, columns, no_autocast, pieces, put, wide, working_dtype
from ssmvdm_kernels.once import differentiable_once


def norm_linear_attention(
    x: Tensor, gain: Tensor, eps: float, qkv_weight: Tensor, out_weight: Tensor, out_bias: Tensor, heads: int
) -> Tensor:
    """x (b, c, f, h, w) -> same shape, every frame for itself, saving x.

    qkv_weight: (3 * heads * d, c); out_weight: (c, heads * d); out_bias: (c,).
    """
    return _NormLinearAttention.apply(x, gain, qkv_weight, out_weight, out_bias, heads, eps)


class _NormLinearAttention(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gain, qkv_weight, out_weight, out_bias, heads, eps):
        ctx.save_for_backward(x, gain, qkv_weight, out_weight, out_bias)
        ctx.heads, ctx.eps, ctx.dtype = heads, eps, working_dtype(x, qkv_weight)
        y = x.new_empty((x.shape[0], out_weight.shape[0], *x.shape[2:]), dtype=ctx.dtype)
        with no_autocast(x):
            qkv_weight, out_weight, out_bias = (t.to(ctx.dtype) for t in (qkv_weight, out_weight, out_bias))
            for piece in pieces(x, qkv_weight.shape[0]):
                frames = piece[1].stop - piece[1].start
                xhat, _ = normalised(columns(x, *piece), eps)
                n = xhat.mul_(wide(gain)[:, None]).to(ctx.dtype)
                q, _, _, context = _attended(qkv_weight @ n, frames, heads)
                out = _joined(context.transpose(1, 2) @ q, frames)
                torch.addmm(out_bias[:, None], out_weight, out, out=columns(y, *piece))
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx, dy):
        x, gain, qkv_weight, out_weight, out_bias = ctx.saved_tensors
        dx, dgain = torch.empty_like(x), torch.zeros_like(wide(gain))
        dqkv_weight, dout_weight = torch.zeros_like(wide(qkv_weight)), torch.zeros_like(wide(out_weight))
        with no_autocast(x):
            low_qkv, low_out = qkv_weight.to(ctx.dtype), out_weight.to(ctx.dtype)
            for piece in pieces(x, qkv_weight.shape[0]):
                dy_, frames = columns(dy, *piece), piece[1].stop - piece[1].start
                xhat, rstd = normalised(columns(x, *piece), ctx.eps)
                n = (xhat * wide(gain)[:, None]).to(ctx.dtype)
                attended = _attended(low_qkv @ n, frames, ctx.heads)
                dout = low_out.t() @ dy_
                out, dqkv = _attention_gradients(dout, *attended, frames, ctx.heads)
                add_product(dout_weight, dy_, out.t())
                add_product(dqkv_weight, dqkv, n.t())
                values, own = norm_gradients(wide(low_qkv.t() @ dqkv), xhat, rstd, wide(gain))
                put(dx, *piece, values)
                dgain += own
            dout_bias = dy.sum((0, 2, 3, 4)).to(out_bias.dtype)
        parameters = dgain.to(gain.dtype), dqkv_weight.to(qkv_weight.dtype), dout_weight.to(out_weight.dtype), dout_bias
        return dx, *parameters, None, None


def _heads(values: Tensor, frames: int, heads: int) -> Tensor:
    """(heads * d, frames * pixels) -> (frames * heads, d, pixels); a view of a single frame."""
    rows, tokens = values.shape
    split = values.view(heads, rows // heads, frames, tokens // max(1, frames))
    return split.permute(2, 0, 1, 3).reshape(frames * heads, rows // heads, -1)


def _joined(values: Tensor, frames: int) -> Tensor:
    """The inverse of `_heads`."""
    split = values.unflatten(0, (frames, -1))
    return split.permute(1, 2, 0, 3).flatten(2).flatten(0, 1)


def _attended(qkv: Tensor, frames: int, heads: int) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Q, K and v, each (frames * heads, d, pixels), and S (frames * heads, d, d), indexed [feature of k, of v]."""
    q, k, v = (_heads(part, frames, heads) for part in qkv.chunk(3))
    q, k = q.softmax(dim=1), k.softmax(dim=2)
    context = (k @ v.transpose(1, 2)).mul_(q.shape[1] ** -0.5)
    return q, k, v, context


def _attention_gradients(dout, q, k, v, context, frames: int, heads: int) -> tuple[Tensor, Tensor]:
    """S^T Q as (heads * d, tokens), for the gradient of W_out, and the gradient of q, k and v before their softmaxes,
    (3 * heads * d, tokens)."""
    out = _joined(context.transpose(1, 2) @ q, frames)
    dout = _heads(dout, frames, heads)
    dq = torch._softmax_backward_data(context @ dout, q, 1, q.dtype)
    dcontext = (q @ dout.transpose(1, 2)).mul_(q.shape[1] ** -0.5)
    dk = torch._softmax_backward_data(dcontext @ v, k, 2, k.dtype)
    dv = dcontext.transpose(1, 2) @ k
    return out, torch.cat([_joined(part, frames) for part in (dq, dk, dv)])
