"""Argument checks shared by the procedural data sets."""

LARGEST_CLIP = 2**31  # numbers: eight gigabytes


def check_clip_arguments(seed: int, frames: int, size: int, batch: int = 1) -> None:
    """ValueError naming the argument unless seed >= 0, the counts are positive whole numbers, and a clip of three
    colours has at most LARGEST_CLIP numbers."""
    for name, value, least in (("seed", seed, 0), ("batch", batch, 1), ("frames", frames, 1), ("size", size, 2)):
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
            raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
    if 3 * int(frames) * int(size) ** 2 > LARGEST_CLIP:
        came = f"3 × {frames:,} × {size} × {size}"
        raise ValueError(f"frames and size: expected a clip of at most {LARGEST_CLIP:,} numbers, got {came}")
