"""The selective state-space layer S6 (Mamba) over frames, in both directions: the paper's choice is mixer "mamba"."""

from torch import Tensor, nn

from ssmvdm.lean import norm_project
from ssmvdm.temporal.registry import register
from ssmvdm_kernels import BidirectionalMamba


class BidirectionalS6(nn.Module):
    """bi-S6 with the Mamba/Vim mixer, every pixel for itself: (b, c, f, h, w) -> same shape.

    Height and width are the scan's lanes: the video is neither permuted nor copied, projections are matrix products on
    the native layout. It takes no position input. With `norm` it is the layer of norm(x), keeping x in its place.
    """

    absorbs_norm = True

    def __init__(self, channels: int, states: int = 16, memory: str = "lean"):
        super().__init__()
        self.mixer = BidirectionalMamba(channels, states=states, memory=memory)

    def forward(
        self,
        x: Tensor,
        position_bias: Tensor | None = None,
        focus_present: Tensor | None = None,
        norm: nn.Module | None = None,
    ) -> Tensor:
        if norm is None:
            return self.mixer(x)
        first = self.mixer.in_proj
        return self.mixer.mix(norm_project(x, norm.gain, norm.eps, first.weight, first.bias))


@register("bi-s6", mixer="mamba")
def _build(channels, config):
    return BidirectionalS6(channels, config.states, config.memory)
