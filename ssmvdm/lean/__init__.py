"""The network's autograd formulas that keep their input and compute the rest again: memory="lean".

Plain autograd keeps every intermediate that a derivative names. Each formula here is the derivative of a chain of cheap
steps around one product or convolution, written by hand: it saves the chain's input, which most often is saved anyway
by what came before, and walks the chain again in backward. Nothing here is a second forward pass of the network: no
spatial convolution and no scan runs twice. All are differentiable once, in any floating dtype, and follow autocast as
the plain modules do.
"""

from ssmvdm.lean.channel_norm import channel_norm, norm_heads, norm_project
from ssmvdm.lean.convolution import convolve_parts, norm_silu, norm_silu_conv
from ssmvdm.lean.linear_attention import norm_linear_attention
from ssmvdm.lean.s4d_mixer import can_mix, s4d_mix

__all__ = [
    "can_mix",
    "channel_norm",
    "convolve_parts",
    "norm_heads",
    "norm_linear_attention",
    "norm_project",
    "norm_silu",
    "norm_silu_conv",
    "s4d_mix",
]
