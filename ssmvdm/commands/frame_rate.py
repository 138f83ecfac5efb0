"""The frame rate of the pictures that a command writes."""

from ssmvdm.errors import InputError


def check_fps(fps: float) -> None:
    """InputError for a rate that a GIF, which counts hundredths of a second, cannot have."""
    if not 0.0 < fps <= 100.0:
        raise InputError(f"--fps: expected a number above 0 and at most 100, got {fps}")
