"""The norm over channels, alone and together with the projection after it.

    xhat = (x - mean) rstd,  n = xhat gain,  y = W n + b                mean, rstd = (var + eps)^-1/2 over the channels
    dgain = sum dn xhat,  dx = rstd (g - mean(g) - xhat mean(g xhat)),  g = dn gain

Saved: x. Mean and deviation are two short sums and are computed again, like n, piece by piece.
"""

import torch
import torch.nn.functional as F
from torch import Tensor

from ssmvdm.lean.pieces import add_product, columns, no_autocast, pieces, put, wide, working_dtype
from ssmvdm_kernels.once import differentiable_once


def channel_norm(x: Tensor, gain: Tensor, eps: float) -> Tensor:
    """n of x (b, c, f, h, w), saving x. In the dtype of x * gain."""
    return _ChannelNorm.apply(x, gain, eps)


def norm_project(x: Tensor, gain: Tensor, eps: float, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """y = W n + b of x (b, c, f, h, w) -> (b, out, f, h, w), saving x. weight: (out, c); bias: (out,)."""
    return _NormProject.apply(x, gain, weight, bias, eps)


def norm_heads(x: Tensor, gain: Tensor, eps: float, weight: Tensor, along: str) -> tuple[Tensor, Tensor, Tensor]:
    """The thirds q, k and v of W n as rows, saving x (b, c, f, h, w). weight: (3 * features, c).

    along: the axis that attention is to mix, "frames" for rows (b h w, f, features), "pixels" for (b f, h w, features).
    """
    return _NormHeads.apply(x, gain, weight, eps, along)


def normalised(values: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    """xhat (c, tokens) and rstd (1, tokens) of columns, in the precision of statistics."""
    values = wide(values)
    xhat = values - values.mean(0, keepdim=True)
    rstd = torch.rsqrt(xhat.square().mean(0, keepdim=True).add_(eps))
    return xhat.mul_(rstd), rstd


def norm_gradients(dn: Tensor, xhat: Tensor, rstd: Tensor, gain: Tensor) -> tuple[Tensor, Tensor]:
    """dx (c, tokens) and dgain (c,), in the memory of dn and xhat, all in the precision of statistics."""
    product = dn * xhat
    dgain = product.sum(1)
    slope = (gain @ product).div_(gain.numel())  # mean over the channels of g xhat
    dn.mul_(gain[:, None])
    dn.sub_(dn.mean(0, keepdim=True)).sub_(xhat.mul_(slope))
    return dn.mul_(rstd), dgain


class _ChannelNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gain, eps):
        ctx.save_for_backward(x, gain)
        ctx.eps = eps
        n = torch.empty_like(x, dtype=torch.promote_types(x.dtype, gain.dtype))
        for piece in pieces(x, x.shape[1]):
            xhat, _ = normalised(columns(x, *piece), eps)
            put(n, *piece, xhat.mul_(wide(gain)[:, None]))
        return n

    @staticmethod
    @differentiable_once
    def backward(ctx, dn):
        x, gain = ctx.saved_tensors
        dx, dgain = torch.empty_like(x), torch.zeros_like(wide(gain))
        with no_autocast(x):
            for piece in pieces(x, x.shape[1]):
                values, own = norm_gradients(
                    wide(columns(dn, *piece)).clone(), *normalised(columns(x, *piece), ctx.eps), wide(gain)
                )
                put(dx, *piece, values)
                dgain += own
        return dx, dgain.to(gain.dtype), None


class _NormProject(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gain, weight, bias, eps):
        ctx.save_for_backward(x, gain, weight, bias)
        ctx.eps, ctx.dtype = eps, working_dtype(x, weight)
        out = weight.shape[0]
        y = x.new_empty((x.shape[0], out, *x.shape[2:]), dtype=ctx.dtype)
        with no_autocast(x):
            low = weight.to(ctx.dtype)
            for piece in pieces(x, x.shape[1] + out):
                xhat, _ = normalised(columns(x, *piece), eps)
                n = xhat.mul_(wide(gain)[:, None]).to(ctx.dtype)
                target = columns(y, *piece)  # a view: y is contiguous
                if bias is None:
                    torch.mm(low, n, out=target)
                else:
                    torch.addmm(bias.to(ctx.dtype)[:, None], low, n, out=target)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx, dy):
        x, gain, weight, bias = ctx.saved_tensors
        dx = torch.empty_like(x)
        dgain, dweight = torch.zeros_like(wide(gain)), torch.zeros_like(wide(weight))
        with no_autocast(x):
            low = weight.to(ctx.dtype)
            for piece in pieces(x, x.shape[1] + weight.shape[0]):
                dy_ = columns(dy, *piece)
                xhat, rstd = normalised(columns(x, *piece), ctx.eps)
                add_product(dweight, dy_, (xhat * wide(gain)[:, None]).to(ctx.dtype).t())
                values, own = norm_gradients(wide(low.t() @ dy_), xhat, rstd, wide(gain))
                put(dx, *piece, values)
                dgain += own
            dbias = None if bias is None else dy.sum((0, 2, 3, 4)).to(bias.dtype)
        return dx, dgain.to(gain.dtype), dweight.to(weight.dtype), dbias, None


class _NormHeads(torch.autograd.Function):
    @staticmethod
    def forward(ctx, x, gain, weight, eps, along):
        ctx.save_for_backward(x, gain, weight)
        ctx.eps, ctx.along, ctx.dtype = eps, along, working_dtype(x, weight)
        with no_autocast(x):
            rows = _normalised_rows(x, gain, eps, along, ctx.dtype)
            return tuple(F.linear(rows, part) for part in weight.to(ctx.dtype).chunk(3))

    @staticmethod
    @differentiable_once
    def backward(ctx, *dheads):
        x, gain, weight = ctx.saved_tensors
        with no_autocast(x):
            dheads = [dhead.flatten(0, 1) for dhead in dheads]  # (rows, features)
            rows = _normalised_rows(x, gain, ctx.eps, ctx.along, ctx.dtype)
            dweight = torch.cat([dhead.t() @ rows.flatten(0, 1) for dhead in dheads]).to(weight.dtype)
            first, *rest = zip(dheads, weight.to(ctx.dtype).chunk(3), strict=True)
            drows = torch.mm(*first, out=rows.flatten(0, 1))
            for dhead, part in rest:
                drows.addmm_(dhead, part)
            dx, dgain = torch.empty_like(x), torch.zeros_like(wide(gain))
            drows = _as_grid(drows.view(rows.shape), x, ctx.along)
            for sample, frames in pieces(x, x.shape[1]):
                dn = wide(drows[sample, frames]).permute(2, 0, 1).reshape(x.shape[1], -1).contiguous()
                values, own = norm_gradients(dn, *normalised(columns(x, sample, frames), ctx.eps), wide(gain))
                put(dx, sample, frames, values)
                dgain += own
        return dx, dgain.to(gain.dtype), dweight, None, None


def _normalised_rows(x: Tensor, gain: Tensor, eps: float, along: str, dtype: torch.dtype) -> Tensor:
    """n with channels last: (b h w, f, c) or (b f, h w, c)."""
    b, c, f, h, w = x.shape
    rows = x.new_empty((b * h * w, f, c) if along == "frames" else (b * f, h * w, c), dtype=dtype)
    grid = _as_grid(rows, x, along)
    for sample, frames in pieces(x, c):
        xhat, _ = normalised(columns(x, sample, frames), eps)
        grid[sample, frames] = xhat.mul_(wide(gain)[:, None]).view(c, -1, h * w).permute(1, 2, 0).to(dtype)
    return rows


def _as_grid(rows: Tensor, x: Tensor, along: str) -> Tensor:
    """Rows of either order as (b, f, h w, c), without a copy."""
    b, c, f, h, w = x.shape
    return rows.view(b, h * w, f, c).transpose(1, 2) if along == "frames" else rows.view(b, f, h * w, c)
