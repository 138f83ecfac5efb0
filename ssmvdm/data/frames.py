"""A frame as it was stored -> the square that the network sees."""

import numpy as np
import torch
from torch.nn.functional import interpolate


def fit(frame: np.ndarray, size: int) -> np.ndarray:
    """frame (height, width, 3 or 1), uint8 or floating point in [0, 1] -> (3, size, size) float32 in [0, 1].

    The shorter edge becomes `size` by bilinear interpolation without antialias, as the paper's pipeline did (from 64
    to 32 pixels that is the mean of 2 x 2), the longer one keeps the proportions and is cropped about its centre.
    ValueError for numbers outside [0, 1] or NaN.
    """
    if frame.dtype == np.uint8:
        pixels = torch.from_numpy(frame.astype(np.float32) / 255.0)
    else:
        if not (frame.min() >= 0.0 and frame.max() <= 1.0):  # so that NaN fails too
            raise ValueError(f"numbers must lie in [0, 1], got {frame.min()} to {frame.max()}")
        pixels = torch.from_numpy(frame.astype(np.float32))
    pixels = pixels.permute(2, 0, 1)[None]  # (1, channels, height, width)
    shorter = min(pixels.shape[2:])
    if shorter != size:
        height, width = (size * edge // shorter for edge in pixels.shape[2:])
        pixels = interpolate(pixels, size=(height, width), mode="bilinear", antialias=False).clamp_(0.0, 1.0)
    top, left = ((edge - size) // 2 for edge in pixels.shape[2:])
    square = pixels[0, :, top : top + size, left : left + size]
    return square.expand(3, size, size).numpy()
