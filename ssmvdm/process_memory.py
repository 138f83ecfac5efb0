"""Memory of this process: what it uses, what it used at most, and a limit on what it may take. Linux first."""

import contextlib
import ctypes
import gc
import os
import resource
import sys
from pathlib import Path

MIB, GIB = 2**20, 2**30
_STATUS = Path("/proc/self/status")
_TRIM_THRESHOLD, _TOP_PAD, _MMAP_THRESHOLD, _MMAP_MAX = -1, -2, -3, -4  # glibc's mallopt parameters
_NEVER, _GROWTH_BYTES = 2**31 - 1, 2**28
_EXACT_BYTES, _USUAL_BYTES = 2**16, 2**25  # blocks from here on are the system's: a few pages; what glibc ends up with
AFFORDABLE_SHARE = 0.9


def _status_bytes(field: str) -> int | None:
    try:
        for line in _STATUS.read_text().splitlines():
            if line.startswith(field + ":"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def resident_bytes() -> int | None:
    """Memory in use now; None where the system does not tell."""
    return _status_bytes("VmRSS")


def lifetime_peak_bytes() -> int:
    """Largest resident size by getrusage. Cannot be reset, and on Linux starts at what the parent had at fork."""
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else peak * 1024


def release_free_memory() -> None:
    """Give pages that the allocator keeps for reuse back to the system, so that they are not taken for used ones."""
    gc.collect()
    with contextlib.suppress(OSError, AttributeError):  # glibc only
        ctypes.CDLL(None).malloc_trim(0)


def _mallopt(*settings: tuple[int, int]) -> bool:
    """Whether the allocator takes these parameters and values: glibc's alone does."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (OSError, AttributeError):
        return False
    taken = [mallopt(*setting) for setting in settings]  # each of them, whatever becomes of the others
    return all(taken)


def return_freed_memory() -> None:
    """Have the allocator give back at once what is freed, so that resident memory is memory in use. By itself it keeps
    blocks of up to 32 MiB, and with them several times what a small network needs. To be called before anything large
    is allocated, and not for timings: new pages take time."""
    _mallopt((_MMAP_THRESHOLD, _EXACT_BYTES))


def reuse_freed_memory() -> None:
    """After `return_freed_memory`: keep and reuse as much as the allocator does by itself."""
    _mallopt((_MMAP_THRESHOLD, _USUAL_BYTES), (_TRIM_THRESHOLD, 2 * _USUAL_BYTES))


def keep_freed_memory() -> bool:
    """Have the allocator reuse what is freed, in large pages where torch can, instead of handing it back: a call then
    finds its memory warm, and not at the mercy of how fast the system clears new pages. To be called before torch
    allocates anything large; False where the allocator cannot (other than glibc)."""
    os.environ.setdefault("THP_MEM_ALLOC_ENABLE", "1")
    return _mallopt((_MMAP_MAX, 0), (_TRIM_THRESHOLD, _NEVER), (_TOP_PAD, _GROWTH_BYTES))


def reset_peak() -> bool:
    """Start a new high-water mark here; False where the system cannot (then only the lifetime peak is known)."""
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return False
    return True


def peak_bytes() -> int:
    """High-water mark of the resident size since `reset_peak`, else since the process began."""
    return _status_bytes("VmHWM") or lifetime_peak_bytes()


def available_bytes() -> int | None:
    """Memory that the machine can still give without swapping."""
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except OSError:
        pass
    return None


def affordable_bytes() -> int | None:
    """What a process may take of the memory that is free now, and leave the machine alive; None where nobody says."""
    free = available_bytes()
    return None if free is None else int(AFFORDABLE_SHARE * free)


def limit_further_bytes(further_bytes: int) -> None:
    """Let this process take at most so much more memory: beyond it allocations fail, instead of the machine."""
    used = _status_bytes("VmData")
    if used is None:
        return
    _, hard = resource.getrlimit(resource.RLIMIT_DATA)
    limit = used + further_bytes
    if hard != resource.RLIM_INFINITY:
        limit = min(limit, hard)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, hard))


def volunteer_for_oom_kill() -> None:
    """If memory runs out all the same, this process goes first, not the one that waits for it."""
    with contextlib.suppress(OSError):
        Path("/proc/self/oom_score_adj").write_text("1000")
