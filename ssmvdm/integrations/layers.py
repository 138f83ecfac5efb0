"""Modules that are called as temporal attention is called, and scan: what `swap_temporal_layers` puts into a model.

Their tensors are (sequences, frames, channels), as diffusers passes them, or (batch, pixels, frames, channels), as
video-diffusion-pytorch does. Both are views away from the mixer's (batch, channels, length, *lanes).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ssmvdm_kernels import BidirectionalMamba


class TemporalScan(nn.Module):
    """`BidirectionalMamba` in the place of a temporal attention layer, with the signature of that layer.

    x: (batch, *pixels, frames, channels), any strides; the result has its shape and its order in memory.

    `pos_bias` is accepted and not read: the scan knows the order of the frames. Nor is `scale`, diffusers' strength of
    LoRA adapters, of which there are none here. `focus_present_mask` (batch,), bool,
    means what it means to attention: where it holds, every frame is a sequence of its own.

    Raises ValueError for `encoder_hidden_states` or `attention_mask`: there is nothing else to attend to, and no frame
    can be left out.
    """

    def __init__(self, mixer: BidirectionalMamba) -> None:
        super().__init__()
        self.mixer = mixer

    def forward(
        self,
        hidden_states: Tensor,
        encoder_hidden_states: Tensor | None = None,
        attention_mask: Tensor | None = None,
        pos_bias: Tensor | None = None,
        focus_present_mask: Tensor | None = None,
        scale: float = 1.0,
    ) -> Tensor:
        for name, given in (("encoder_hidden_states", encoder_hidden_states), ("attention_mask", attention_mask)):
            if given is not None:
                raise ValueError(
                    f"TemporalScan: {name} must be None, for the scan runs over all frames of one video and nothing "
                    f"else, but has the shape {tuple(given.shape)}."
                )
        y = self.mix(hidden_states)
        if focus_present_mask is not None and focus_present_mask.any():
            alone = self.mix(hidden_states.unsqueeze(-2)).squeeze(-2)  # one frame long, and the frames count as pixels
            y = torch.where(focus_present_mask.reshape(-1, *(1,) * (y.dim() - 1)), alone, y)
        return y

    def mix(self, x: Tensor) -> Tensor:
        """The mixer on (batch, *pixels, frames, channels), as that lies in memory: as sequences where channels are
        contiguous and pixels follow one another, else as a video."""
        leading = x.shape[:-2]
        if x.stride(-1) == 1 and all(x.stride(i) == x.shape[i + 1] * x.stride(i + 1) for i in range(x.dim() - 3)):
            return self.mixer(x.flatten(0, -3).transpose(1, 2)).transpose(1, 2).unflatten(0, leading)
        return self.mixer(x.movedim((-1, -2), (1, 2))).movedim((1, 2), (-1, -2))


class ParallelScan(nn.Module):
    """attention(x) + gate * scan(x): a temporal attention layer with a scan beside it.

    gate: (channels,), zero at first, so that the model computes what it did before and learns to use the scan.
    """

    def __init__(self, attention: nn.Module, scan: TemporalScan) -> None:
        super().__init__()
        self.attention = attention
        self.scan = scan
        weight = scan.mixer.out_proj.weight
        self.gate = nn.Parameter(weight.new_zeros(weight.shape[0]))

    def forward(self, hidden_states: Tensor, **arguments) -> Tensor:
        attended = self.attention(hidden_states, **arguments)
        scanned = self.scan(hidden_states, **arguments)
        return attended + (self.gate * scanned).to(attended.dtype)
