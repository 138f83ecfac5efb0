"""Where and on what a benchmark ran: every result carries this."""

import os
import platform
import re
import subprocess
import time
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

BUSY_SHARE = 0.4  # of the cores
WATCHED_S = 0.5


def device_name() -> str:
    """The processor as it calls itself."""
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith(("model name", "Model")):
                return re.sub(r"\s+", " ", line.split(":", 1)[1]).strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def device_slug(name: str) -> str:
    """A folder name: `AMD EPYC 9R45` -> `amd-epyc-9r45`."""
    return re.sub(r"[^a-z0-9]+", "-", re.sub(r"\((r|tm|c)\)|processor|cpu", " ", name.lower())).strip("-") or "unknown"


def commit() -> str:
    """Commit of the checkout this file lies in, with "+" if tracked files other than results differ. Outside of one,
    where a copy of the tree may run, what SSMVDM_COMMIT says, or "unknown"."""
    unknown = os.environ.get("SSMVDM_COMMIT", "unknown")
    folder = Path(__file__).resolve().parents[2]

    def git(*arguments: str) -> str:
        call = subprocess.run(["git", "-C", str(folder), *arguments], capture_output=True, text=True, timeout=20)
        return call.stdout.strip() if call.returncode == 0 else ""

    try:
        if Path(git("rev-parse", "--show-toplevel") or "/") != folder:
            return unknown  # site-packages inside somebody else's checkout
        head = git("rev-parse", "--short=10", "HEAD")
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", ":!benchmarks/results")
        return head + ("+" if head and changed else "") or unknown
    except (OSError, subprocess.TimeoutExpired):
        return unknown


def total_memory_bytes() -> int | None:
    """Physical memory, or the control group's limit where that is smaller."""
    try:
        total = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    except (ValueError, OSError, AttributeError):
        return None
    try:
        limit = Path("/sys/fs/cgroup/memory.max").read_text().strip()
        return min(total, int(limit)) if limit.isdigit() else total
    except OSError:
        return total


def load() -> float | None:
    """How many cores other work takes, watched for a moment. Where the system does not say, the load average, which
    counts what this machine was asked to do before, such as building the kernels, too."""
    try:
        start, before = time.perf_counter(), _busy_seconds()
        time.sleep(WATCHED_S)
        return round((_busy_seconds() - before) / (time.perf_counter() - start), 2)
    except (OSError, ValueError, AttributeError):
        pass
    try:
        return round(os.getloadavg()[0], 2)
    except (OSError, AttributeError):
        return None


def _busy_seconds() -> float:
    """Of all cores since the machine began, by Linux's count; with what a hypervisor gave to others."""
    user, nice, system, _idle, _wait, *more = map(int, Path("/proc/stat").read_text().split("\n", 1)[0].split()[1:9])
    return sum((user, nice, system, *more)) / os.sysconf("SC_CLK_TCK")


def busy_warning(environment: dict) -> str:
    """A sentence when other work kept a good part of the machine busy as the run began, else an empty string."""
    load, cores = environment.get("load_before"), environment.get("cores") or 1
    if load is None or load <= BUSY_SHARE * cores:
        return ""
    return f"Other work was running when this began (load {load} on {cores} cores): do not trust the times."


def stamp() -> dict:
    """What the parts of one run have in common; without importing torch."""
    versions = {name: metadata.version(name) for name in ("torch", "numpy")}
    return {"device": device_name(), "commit": commit(), "python": platform.python_version()} | versions


def describe(threads: int) -> dict:
    """Everything a reader needs to repeat the run. Imports torch and the kernels."""
    import torch

    import ssmvdm
    import ssmvdm_kernels

    name = device_name()
    return {
        "device": name,
        "device_slug": device_slug(name),
        "cores": os.cpu_count(),
        "load_before": load(),
        "threads": threads,
        "memory_bytes": total_memory_bytes(),
        "vector_extension": torch.backends.cpu.get_cpu_capability(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "ssmvdm": ssmvdm.__version__,
        "backends": list(ssmvdm_kernels.available_backends()),
        "commit": commit(),
        "date": datetime.now(timezone.utc).isoformat(timespec="seconds"),
    }


def machine(environment: dict) -> str:
    """The device and how much of it was used."""
    threads = environment["threads"]
    return f"{environment['device']}, {threads} thread{'s' if threads > 1 else ''}"


def one_line(environment: dict) -> str:
    """Provenance as it is stamped into figures."""
    return (
        f"{machine(environment)} · torch {environment['torch']} · "
        f"ssmvdm {environment['ssmvdm']} ({environment['commit']}) · {environment['date'][:10]}"
    )
