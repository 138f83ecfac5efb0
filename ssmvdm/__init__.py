"""Video diffusion with state-space temporal layers: the network, the diffusion process, data, training and benchmarks.

The operator itself (the bidirectional selective scan) lives in `ssmvdm_kernels`.
"""

from ssmvdm import convert
from ssmvdm.config import TemporalConfig, UNet3DConfig
from ssmvdm.diffusion import GaussianDiffusion
from ssmvdm.integrations import swap_temporal_layers
from ssmvdm.unet3d import UNet3D

__version__ = "0.1.0"

__all__ = [
    "GaussianDiffusion",
    "TemporalConfig",
    "UNet3D",
    "UNet3DConfig",
    "__version__",
    "convert",
    "swap_temporal_layers",
]
