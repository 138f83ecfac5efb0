"""How fast this machine is at what the scan is made of: exponentials and memory."""

import time
from concurrent.futures import ThreadPoolExecutor
from functools import partial

from benchmarks.measure.timing import once


def of_machine(threads: int) -> dict[str, float | None]:
    """{"exponentials_per_second", "bytes_per_second"}; the first None where there is no probe."""
    return {"exponentials_per_second": exponentials_per_second(threads), "bytes_per_second": bytes_per_second()}


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
