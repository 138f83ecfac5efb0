"""Memory of a measurement where it runs: that of the process on a CPU, that of torch's allocator on a GPU."""

import gc
from typing import Protocol

import torch

from ssmvdm import process_memory


class Meter(Protocol):
    """Bytes in use, the most since a mark, and a limit on what comes."""

    def be_exact(self) -> None:
        """From here on what is freed does not count as used. To be called before anything large is allocated."""

    def be_fast(self) -> None:
        """From here on what is freed is reused as usual, which timings need."""

    def release(self) -> None:
        """Give back what is kept for reuse, so that it is not taken for used."""

    def limit_further(self, further_bytes: int) -> None:
        """Beyond so much more, allocations fail."""

    def in_use(self) -> int: ...

    def reset_peak(self) -> bool:
        """Start a new high-water mark; False where there is none but that of the process's life."""

    def peak(self) -> int: ...

    def finish(self) -> None:
        """Wait until all that was asked for is done."""


class CpuMeter:
    """Resident memory of the process."""

    be_exact = staticmethod(process_memory.return_freed_memory)
    be_fast = staticmethod(process_memory.reuse_freed_memory)
    release = staticmethod(process_memory.release_free_memory)
    limit_further = staticmethod(process_memory.limit_further_bytes)
    reset_peak = staticmethod(process_memory.reset_peak)
    peak = staticmethod(process_memory.peak_bytes)

    def in_use(self) -> int:
        return process_memory.resident_bytes() or process_memory.lifetime_peak_bytes()

    def finish(self) -> None:
        """Nothing runs on after a call has returned."""


class CudaMeter:
    """Tensors of torch's caching allocator on the current GPU; the limit is on what the allocator holds."""

    def be_exact(self) -> None:
        """Tensors are all that is counted."""

    def be_fast(self) -> None:
        """The allocator always is."""

    def release(self) -> None:
        gc.collect()
        torch.cuda.empty_cache()

    def limit_further(self, further_bytes: int) -> None:
        total = torch.cuda.get_device_properties(torch.cuda.current_device()).total_memory
        allowed = torch.cuda.memory_reserved() + further_bytes
        torch.cuda.set_per_process_memory_fraction(min(1.0, allowed / total))

    def in_use(self) -> int:
        return torch.cuda.memory_allocated()

    def reset_peak(self) -> bool:
        torch.cuda.reset_peak_memory_stats()
        return True

    def peak(self) -> int:
        return torch.cuda.max_memory_allocated()

    def finish(self) -> None:
        torch.cuda.synchronize()


def meter_of(device: str) -> Meter:
    return CpuMeter() if device == "cpu" else CudaMeter()
