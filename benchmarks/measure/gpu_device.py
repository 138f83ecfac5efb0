"""The GPU that a benchmark runs on: what it is, what its clocks are, and how fast it copies. All of it only read."""

import contextlib
import shutil
import subprocess
import time
from collections.abc import Callable
from statistics import median

import torch

from ssmvdm.report import environment

CLOCK_FIELDS = {
    "clocks.sm": "sm_mhz", "clocks.mem": "memory_mhz", "power.draw": "power_w", "temperature.gpu": "temperature_c",
}  # fmt: skip
FIXED_FIELDS = {
    "driver_version": "driver", "clocks.max.sm": "max_sm_mhz", "clocks.max.mem": "max_memory_mhz",
    "power.limit": "power_limit_w",
}  # fmt: skip


def query(
    fields: dict[str, str], meanwhile: Callable[[], object] | None = None, timeout_s: float = 10.0
) -> dict[str, float | str]:
    """What nvidia-smi says of the current device, under our names; nothing where it cannot say it. meanwhile: what the
    device is kept busy with, called until there is an answer."""
    program = shutil.which("nvidia-smi")
    if program is None:
        return {}
    command = [program, f"--id={_identity()}", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits"]
    until = time.monotonic() + timeout_s
    try:
        with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True) as process:
            while meanwhile and process.poll() is None and time.monotonic() < until:
                meanwhile()
            try:
                answer, _ = process.communicate(timeout=max(0.0, until - time.monotonic()))
            except subprocess.TimeoutExpired:
                process.kill()
                return {}
    except OSError:
        return {}
    return parsed(fields, answer) if process.returncode == 0 else {}


def _identity() -> str:
    """The device as nvidia-smi knows it, whatever CUDA_VISIBLE_DEVICES makes of its number."""
    identity = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
    return identity if identity.startswith("GPU-") else f"GPU-{identity}"


def parsed(fields: dict[str, str], line: str) -> dict[str, float | str]:
    """One line of nvidia-smi's CSV; "[N/A]" and the like, and whatever else is no number, are left out."""
    found: dict[str, float | str] = {}
    for field, value in zip(fields.values(), line.strip().split(","), strict=False):
        value = value.strip()
        if not value or value.startswith("["):
            continue
        with contextlib.suppress(ValueError):
            found[field] = value if field == "driver" else float(value)
    return found


def summary_of_clocks(samples: list[dict]) -> dict[str, float]:
    """Least, middle and largest of every quantity over the samples that have it, as "sm_mhz_median" and so on."""
    found = {}
    for field in CLOCK_FIELDS.values():
        values = [sample[field] for sample in samples if field in sample]
        if values:
            found |= {f"{field}_min": min(values), f"{field}_median": median(values), f"{field}_max": max(values)}
    return found


def name(device: str) -> str:
    """The device as it calls itself: the current GPU for "cuda", the processor for "cpu"."""
    return environment.device_name() if device == "cpu" else torch.cuda.get_device_name()


def describe(device: str) -> dict:
    """Everything a reader needs to repeat the run: `environment.describe`, and for "cuda" the device besides."""
    found = environment.describe(torch.get_num_threads())
    if device == "cpu":
        return found
    properties = torch.cuda.get_device_properties(torch.cuda.current_device())
    return found | query(FIXED_FIELDS) | {
        "device": name(device),
        "device_slug": environment.device_slug(name(device)),
        "host": found["device"],
        "capability": f"{properties.major}.{properties.minor}",
        "multiprocessors": properties.multi_processor_count,
        "device_memory_bytes": properties.total_memory,
        "cache_bytes": properties.L2_cache_size,
        "cuda": torch.version.cuda,
        "copy_bytes_per_second": copy_rate(),
    }  # fmt: skip


def copy_rate(nbytes: int = 2**30, repeats: int = 20) -> float:
    """Bytes read and written per second by a large copy on the device, the best of a few."""
    source = torch.randint(255, (nbytes,), dtype=torch.uint8, device="cuda")
    target = torch.empty_like(source)
    best = 0.0
    for _ in range(repeats):
        start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        target.copy_(source)
        end.record()
        end.synchronize()
        best = max(best, 2 * nbytes / (start.elapsed_time(end) / 1e3))
    del source, target
    torch.cuda.empty_cache()
    return best


def one_line(found: dict) -> str:
    """Provenance as it is stamped into tables and figures."""
    driver = f", driver {found['driver']}" if "driver" in found else ""
    return (
        f"{found['device']}{driver} · torch {found['torch']} · ssmvdm {found['ssmvdm']} ({found['commit']}) · "
        f"{found['date'][:16].replace('T', ' ')} UTC"
    )
