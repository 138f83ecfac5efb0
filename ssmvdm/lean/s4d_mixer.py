"""The middle of the Mamba mixer around S4D: convolution, scan, gate and W_out.

    u, u_b = silu(conv(x')), silu(conv_b(x'));  y = (S4D(u) + S4D_b(u_b)) silu(z);  out = W_out y + b

Saved: (x', z), the output of W_in, and the parameters. In backward the convolution runs again, but not the scan, whose
backward kernel walks the states in any case and hands out y.
"""

from collections.abc import Sequence

import torch
from torch import Tensor

from ssmvdm_kernels import backends, validation
from ssmvdm_kernels.mixing import autocast_to, wide
from ssmvdm_kernels.once import differentiable_once
from ssmvdm_kernels.ops import BOTH, FORWARD, SUM, ConvTensors
from ssmvdm_kernels.ops_s4d import NEEDS_Y, S4dTensors
from ssmvdm_kernels.project import bias_gradient, product, project, weight_gradient

CALLER = "the S4D mixer"
OWN = 5  # tensors per direction: filter (channels, width), its bias, decay, weight (channels, modes), D


def s4d_mix(xz: Tensor, directions: Sequence[Sequence[Tensor]], out_weight: Tensor, out_bias: Tensor) -> Tensor:
    """out of xz (b, 2 channels, f, h, w), saving xz; backends with operators only, see `can_mix`.

    directions: one (causal) or two (causal, anticausal), each filter, its bias, decay, weight and D, where decay and
    weight are complex, as `ssmvdm_kernels.s4d_scan` takes them.
    """
    return _S4dMix.apply(xz, out_weight, out_bias, *(tensor for own in directions for tensor in own))


def can_mix(x: Tensor) -> bool:
    """Whether the backend for sequences like x has operators, and no compiler is to trace the formula."""
    return _backend(x).operators is not None and not torch.compiler.is_compiling()


class _S4dMix(torch.autograd.Function):
    @staticmethod
    def forward(ctx, xz, out_weight, out_bias, *parameters):
        ctx.save_for_backward(xz, out_weight, out_bias, *parameters)
        ctx.low = validation.autocast_dtype(xz)
        _, scan = _inputs(xz, parameters)
        y = _backend(scan.u).s4d(scan, _way(parameters), SUM)
        return project(y, out_weight, out_bias).detach()  # no view, which nobody could change in place

    @staticmethod
    @differentiable_once
    def backward(ctx, dout):
        xz, out_weight, out_bias, *parameters = ctx.saved_tensors
        way = _way(parameters)
        with autocast_to(xz.device.type, ctx.low):
            conv, scan = _inputs(xz, parameters)
        with autocast_to(xz.device.type, None):
            operators = _backend(scan.u).operators
            dy = product(dout, out_weight.to(dout.dtype).t())
            needs = sum(1 << index for index, tensor in enumerate(scan) if tensor is not None)
            *gradients, y = operators.s4d_backward(dy, *scan, way, SUM, needs | NEEDS_Y)
            d = S4dTensors(*gradients)
            dout_weight = weight_gradient(dout, y).to(out_weight.dtype)
            dout_bias = bias_gradient(dout).to(out_bias.dtype)
            del dy, y, dout
            du_b = d.u_b if way == BOTH else d.u.new_empty((0,))
            needs = sum(1 << index for index, tensor in enumerate(conv) if tensor is not None)
            dx, *dfilters = operators.conv1d_backward(d.u, du_b, *conv, way, True, needs)
        dparameters = [*dfilters[:2], *_complex(d.decay, d.weight), d.D]
        if way == BOTH:
            dparameters += [*dfilters[2:], *_complex(d.decay_b, d.weight_b), d.D_b]
        dparameters = [own.to(p.dtype) for own, p in zip(dparameters, parameters, strict=True)]
        return torch.cat((dx, d.z), dim=1).to(xz.dtype), dout_weight, dout_bias, *dparameters


def _backend(x: Tensor):
    return backends.select(CALLER, x, "auto")


def _way(parameters: Sequence[Tensor]) -> int:
    return BOTH if len(parameters) == 2 * OWN else FORWARD


def _complex(*pairs: Tensor) -> list[Tensor]:
    return [torch.view_as_complex(pair) for pair in pairs]


def _inputs(xz: Tensor, parameters: Sequence[Tensor]) -> tuple[ConvTensors, S4dTensors]:
    """What the convolution and the scan are given."""
    x, z = xz.chunk(2, dim=1)
    way, ahead, back = _way(parameters), parameters[:OWN], parameters[OWN:]
    conv = ConvTensors(x, wide(ahead[0]), wide(ahead[1]))
    if back:
        conv = conv._replace(weight_b=wide(back[0]), bias_b=wide(back[1]))
    conv = validation.prepare_conv1d(CALLER, conv)
    us = _backend(conv.x).conv1d(conv, way, True)
    scan = S4dTensors(us[0], ahead[2], ahead[3], wide(ahead[4]), z)
    if back:
        scan = scan._replace(u_b=us[1], decay_b=back[2], weight_b=back[3], D_b=wide(back[4]))
    scan = validation.prepare_s4d(CALLER, scan)
    return conv, S4dTensors(*(t if t is None or not t.is_complex() else torch.view_as_real(t) for t in scan))
