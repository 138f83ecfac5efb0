"""What every source of video hands out."""

from typing import NamedTuple

import numpy as np


class Clip(NamedTuple):
    """video (3, frames, size, size) float32 in [0, 1]; caption, where the data set has one."""

    video: np.ndarray
    caption: str | None = None
