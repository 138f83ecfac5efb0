"""The largest number of frames that fits, from as few tries as a good guess allows."""

from collections.abc import Callable

import numpy as np

REACH = 64  # where measured values hardly grow, a guess would be any number


def largest(fits: Callable[[int], bool], guess: int, resolution: int = 1) -> tuple[int, int]:
    """(a count that fits, or 0, which is never tried; one that does not), `resolution` apart. Counts are multiples of
    `resolution`; if one fits, so must every smaller one, and some must not.

    From the guess outwards in steps that double, then by halving what is left between the two.
    """
    low, high = 0, max(1, guess // resolution)
    step = 1
    if fits(high * resolution):
        low, high = high, high + 1
        while fits(high * resolution):
            step *= 2
            low, high = high, high + step
    else:
        while high > step and not fits((high - step) * resolution):
            high -= step
            step *= 2
        low = max(high - step, 0)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle * resolution) else (low, middle)
    return low * resolution, high * resolution


def crossing(points: list[tuple[int, float]], limit: float) -> int:
    """A guess at the count where what grows through these (count, value) reaches the limit: by the parabola through the
    last three, or what fewer allow; the last count if it never gets there, and no more than REACH times that."""
    counts, values = zip(*points[-3:], strict=True)
    coefficients = np.polyfit(counts, np.subtract(values, limit), len(counts) - 1)
    reached = [root.real for root in np.roots(coefficients) if root.real > 0 and np.isclose(root.imag, 0.0)]
    return max(1, int(min(*reached, REACH * counts[-1]) if reached else counts[-1]))
