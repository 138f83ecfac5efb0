"""Linear maps over channels on videos as they lie in memory, and the dtype that kernels take parameters in."""

from torch import Tensor, nn

from ssmvdm_kernels.mixing import wide
from ssmvdm_kernels.project import project

__all__ = ["Pointwise", "project", "wide"]


class Pointwise(nn.Linear):
    """y_t = W x_t + bias for every frame and pixel: (b, in, f, h, w) -> (b, out, f, h, w), nothing permuted or copied.

    The parameters, their names and their initialisation are those of `torch.nn.Linear`.
    """

    def forward(self, x: Tensor) -> Tensor:
        return project(x, self.weight, self.bias)
