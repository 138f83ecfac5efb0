"""The measurements that `benchmarks.measure.children` runs in processes of their own, by the name of their task.

A request is {"task", "threads"} and what the task's function says that it takes.
"""

import traceback

import torch

from benchmarks.kernels.scan_peak import scan_peak
from benchmarks.measure import environment, process_memory
from benchmarks.models import tasks

TASKS = {
    "training": tasks.training,
    "sampling": tasks.sampling,
    "modes": tasks.modes,
    "counts": tasks.counts,
    "scan_peak": scan_peak,
    "environment": lambda request: environment.describe(request["threads"]),
}


def answer(request: dict) -> dict:
    """What the measurement gives, or {"status", "detail"} for one that ran out of memory or broke."""
    process_memory.volunteer_for_oom_kill()
    torch.set_num_threads(request["threads"])
    try:
        return TASKS[request["task"]](request)
    except Exception as error:  # whatever it is, the other measurements go on
        message = (str(error).splitlines() or ["no message"])[0]
        if isinstance(error, MemoryError) or "allocate memory" in str(error):
            return {"status": "out of memory", "detail": f"an allocation failed: {message}"}
        traceback.print_exc()
        return {"status": "error", "detail": f"{type(error).__name__}: {message}"}
