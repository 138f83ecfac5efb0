"""Times that can be compared: candidates take turns in one process, so that whatever else the machine does hits all."""

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from statistics import median


def once(function: Callable[[], object]) -> float:
    """Seconds of one call."""
    start = time.perf_counter()
    function()
    return time.perf_counter() - start


def interleaved(
    candidates: dict[str, Callable[[], object]], rounds: int, budget_seconds: float, least_rounds: int = 3
) -> dict[str, list[float | None]]:
    """Seconds per round and candidate; every candidate runs once untimed first.

    A candidate that has used up its budget sits out the remaining rounds (None), but not before `least_rounds`.
    """
    for function in candidates.values():
        function()
    samples: dict[str, list[float | None]] = {name: [] for name in candidates}
    spent = dict.fromkeys(candidates, 0.0)
    for turn in range(rounds):
        for name, function in candidates.items():
            seconds = None
            if turn < least_rounds or spent[name] < budget_seconds:
                seconds = once(function)
                spent[name] += seconds
            samples[name].append(seconds)
    return samples


def ratio(theirs: list[float | None], ours: list[float | None]) -> float:
    """Median over the rounds both took part in of theirs / ours."""
    return median(a / b for a, b in zip(theirs, ours, strict=True) if a is not None and b is not None)


def middle(samples: list[float | None]) -> float:
    return median(value for value in samples if value is not None)


def exponentials_per_second(threads: int, seconds: float = 0.2) -> float | None:
    """The rate of the scan's own vector exp2 with nothing around it, on so many threads; None if the compiled kernels
    do not offer the probe."""
    import torch

    try:
        probe = torch.ops.ssmvdm.cpu_exp2_rate
    except AttributeError:
        return None
    vectors = 1 << 16
    while (took := once(partial(probe, vectors))) < seconds / 4:
        vectors *= 2
    vectors = int(vectors * seconds / took)
    with ThreadPoolExecutor(threads) as pool:  # the dispatcher releases the interpreter lock
        best = 0.0
        for _ in range(3):
            start = time.perf_counter()
            lanes = sum(pool.map(probe, [vectors] * threads))
            best = max(best, lanes / (time.perf_counter() - start))
    return best


def bytes_per_second(nbytes: int = 2**27, repeats: int = 5) -> float:
    """Bytes read and written by a sum of two arrays into a third, all beyond the caches, on torch's threads; the best
    of a few."""
    import torch

    first, second, total = (torch.ones(nbytes // 4) for _ in range(3))
    return 3 * nbytes / min(once(partial(torch.add, first, second, out=total)) for _ in range(repeats))
