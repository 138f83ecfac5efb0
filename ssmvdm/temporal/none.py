"""No temporal layer at all: every frame for itself, the control of an ablation."""

from torch import Tensor, nn

from ssmvdm.temporal.registry import register


class NoTemporal(nn.Module):
    """Returns the video as it came."""

    def forward(self, x: Tensor, position_bias: Tensor | None = None, focus_present: Tensor | None = None) -> Tensor:
        return x


@register("none")
def _build(channels, config):
    return NoTemporal()
