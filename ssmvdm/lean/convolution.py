"""GroupNorm, modulation and SiLU, alone and before a convolution; and a convolution of channels that lie apart.

    a = silu((norm(h) weight + bias) (scale + 1) + shift) = silu(norm(h) W + B),   W = weight (scale + 1), B likewise

W and B are numbers per sample and channel. Seen as one sample of b * c channels in b * groups groups, h is normalised
and modulated by GroupNorm's own kernel, and the gradients of W and B that its backward kernel sums are all that weight,
bias, scale and shift need. Saved: h, and mean and deviation of each group.
"""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ssmvdm.lean.pieces import no_autocast, wide, working_dtype
from ssmvdm_kernels.once import differentiable_once

aten = torch.ops.aten


def norm_silu(h: Tensor, norm: nn.GroupNorm) -> Tensor:
    """silu(norm(h)) of h (b, c, f, h, w), saving h."""
    return _NormSiLU.apply(h, norm.weight, norm.bias, norm.num_groups, norm.eps)


def norm_silu_conv(
    h: Tensor, norm: nn.GroupNorm, scale: Tensor | None, shift: Tensor | None, conv: nn.Conv3d
) -> Tensor:
    """conv(silu(norm(h) * (scale + 1) + shift)), saving h.

    h: (b, c, f, h, w); scale, shift: (b, c), or both None for no modulation; conv: of stride 1.
    """
    options = (norm.num_groups, norm.eps, conv.padding)
    return _NormSiLUConv.apply(h, norm.weight, norm.bias, scale, shift, conv.weight, conv.bias, *options)


def convolve_parts(conv: nn.Conv3d, parts: Sequence[Tensor]) -> Tensor:
    """conv(cat(parts, dim=1)), the sum over the parts' own channels: what is saved are the parts, not another copy."""
    weights = conv.weight.split([part.shape[1] for part in parts], dim=1)
    y = F.conv3d(parts[0], weights[0], conv.bias, padding=conv.padding)
    for part, weight in zip(parts[1:], weights[1:], strict=True):
        y = y + F.conv3d(part, weight, padding=conv.padding)
    return y


class _NormSiLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, weight, bias, groups, eps):
        a, mean, rstd = _norm(h, *_affine(h, weight, bias, None, None), groups, eps)
        ctx.save_for_backward(h, weight, bias, mean, rstd)
        return F.silu(a, inplace=True)

    @staticmethod
    @differentiable_once
    def backward(ctx, da):
        h, weight, bias, mean, rstd = ctx.saved_tensors
        before = _norm_again(h, *_affine(h, weight, bias, None, None), mean, rstd)
        dbefore = aten.silu_backward.grad_input(da, before, grad_input=before)
        dh, dweight, dbias, _, _ = _norm_gradients(dbefore, h, weight, bias, None, None, mean, rstd)
        return dh, dweight, dbias, None, None


class _NormSiLUConv(torch.autograd.Function):
    @staticmethod
    def forward(ctx, h, weight, bias, scale, shift, conv_weight, conv_bias, groups, eps, padding):
        ctx.padding, ctx.dtype = padding, working_dtype(h, conv_weight)
        with no_autocast(h):
            a, mean, rstd = _norm(h, *_affine(h, weight, bias, scale, shift), groups, eps)
            a = F.silu(a, inplace=True).to(ctx.dtype)
            y = F.conv3d(a, conv_weight.to(ctx.dtype), conv_bias.to(ctx.dtype), padding=padding)
        ctx.save_for_backward(h, weight, bias, scale, shift, conv_weight, mean, rstd)
        return y

    @staticmethod
    @differentiable_once
    def backward(ctx, dy):
        h, weight, bias, scale, shift, conv_weight, mean, rstd = ctx.saved_tensors
        with no_autocast(h):
            before = _norm_again(h, *_affine(h, weight, bias, scale, shift), mean, rstd)
            a = F.silu(before).to(ctx.dtype)
            da, dconv_weight, dconv_bias = aten.convolution_backward(
                dy, a, conv_weight.to(ctx.dtype), [dy.shape[1]], [1, 1, 1], ctx.padding, [1, 1, 1], False, [0, 0, 0], 1,
                [True, True, True],
            )  # fmt: skip
            del a
            dbefore = aten.silu_backward.grad_input(da.to(h.dtype), before, grad_input=before)
            del da
            small = _norm_gradients(dbefore, h, weight, bias, scale, shift, mean, rstd)
        kept = conv_weight.dtype
        return *small, dconv_weight.to(kept), dconv_bias.to(kept), None, None, None


def _affine(h, weight, bias, scale, shift) -> tuple[Tensor, Tensor]:
    """W and B, each (b * c,)."""
    weight, bias = wide(weight), wide(bias)
    if scale is None:
        return weight.repeat(h.shape[0]), bias.repeat(h.shape[0])
    gain = wide(scale) + 1  # (b, c)
    return (weight * gain).flatten(), (bias * gain + wide(shift)).flatten()


def _one_sample(h: Tensor) -> Tensor:
    """(b, c, ...) -> (1, b * c, ...), contiguous. Kernels of the CPU take low precision beside float32 parameters."""
    folded = h.contiguous().view(1, -1, *h.shape[2:])
    return folded if h.device.type in ("cpu", "meta") else wide(folded)


def _sizes(h: Tensor) -> tuple[int, int, int]:
    """Samples, channels and values per channel, as GroupNorm's kernels want them."""
    channels = h.shape[0] * h.shape[1]
    return 1, channels, h[0, 0].numel() if channels else 0


def _norm(h: Tensor, gain: Tensor, offset: Tensor, groups: int, eps: float) -> tuple[Tensor, Tensor, Tensor]:
    """norm(h) gain + offset, and the mean and the inverse deviation of each group: (1, b * groups)."""
    y, mean, rstd = aten.native_group_norm(_one_sample(h), gain, offset, *_sizes(h), h.shape[0] * groups, eps)
    return y.to(h.dtype).reshape(h.shape), mean, rstd


def _norm_again(h: Tensor, gain: Tensor, offset: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    """The first result of `_norm`, from its statistics."""
    per_group = gain.numel() // max(1, mean.numel())
    slope = (gain.view(-1, per_group) * rstd.view(-1, 1)).flatten()
    offset = offset - slope * mean.view(-1, 1).expand(-1, per_group).flatten()
    per_channel = (*h.shape[:2], *(1,) * (h.ndim - 2))
    return (h * slope.view(per_channel)).add_(offset.view(per_channel)).to(h.dtype)


def _norm_gradients(dy, h, weight, bias, scale, shift, mean, rstd) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Gradients of h, weight, bias, scale and shift, given that of norm(h) W + B."""
    gain, _ = _affine(h, weight, bias, scale, shift)
    one = _one_sample(h)
    dh, dgain, doffset = aten.native_group_norm_backward(
        _one_sample(dy), one, mean, rstd, gain, *_sizes(h), mean.numel(), [True, True, True]
    )
    dh = dh.to(h.dtype).reshape(h.shape)
    dgain, doffset = wide(dgain).view(h.shape[:2]), wide(doffset).view(h.shape[:2])
    if scale is None:
        return dh, dgain.sum(0).to(weight.dtype), doffset.sum(0).to(bias.dtype), None, None
    factor = wide(scale) + 1
    dweight, dbias = (dgain * factor).sum(0), (doffset * factor).sum(0)
    dscale = dgain * wide(weight) + doffset * wide(bias)
    return dh, dweight.to(weight.dtype), dbias.to(bias.dtype), dscale.to(scale.dtype), doffset.to(shift.dtype)
