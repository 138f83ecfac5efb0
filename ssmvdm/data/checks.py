"""Argument checks shared by the procedural data sets."""


def check_clip_arguments(seed: int, frames: int, size: int, batch: int = 1) -> None:
    """ValueError naming the argument unless seed >= 0 and the counts are positive whole numbers."""
    for name, value, least in (("seed", seed, 0), ("batch", batch, 1), ("frames", frames, 1), ("size", size, 2)):
        if isinstance(value, bool) or not hasattr(value, "__index__") or value < least:
            raise ValueError(f"{name}: expected a whole number of at least {least}, got {value!r}")
