"""The measurements that `benchmarks.measure.children` runs in processes of their own, by the name of their task.

A request is {"task", "threads"} and what the task's function says that it takes.
"""

from collections.abc import Iterator

import torch

from benchmarks.kernels import scan_tasks
from benchmarks.kernels.scan_peak import scan_peak
from benchmarks.layers import tasks as layer_tasks
from benchmarks.measure import gpu_device, rates
from benchmarks.measure.failures import failure
from benchmarks.models import tasks
from ssmvdm import process_memory
from ssmvdm.report import environment

TASKS = {
    "training": tasks.training,
    "sampling": tasks.sampling,
    "modes": tasks.modes,
    "counts": tasks.counts,
    "scan_peak": scan_peak,
    "rates": lambda request: rates.of_machine(request["threads"]),
    "scan_shape": scan_tasks.shape_rows,
    "layer_alone": layer_tasks.alone,
    "layers_in_turns": layer_tasks.in_turns,
    "environment": lambda request: environment.describe(request["threads"]),
    "gpu": lambda request: gpu_device.describe("cuda"),
}


def answers(request: dict) -> Iterator[dict]:
    """What the measurement gives, or {"status", "detail"} for one that ran out of memory or broke. One of many parts
    gives what it has so far before each of them, with the part that comes as "unfinished"."""
    process_memory.volunteer_for_oom_kill()
    torch.set_num_threads(request["threads"])
    try:
        found = TASKS[request["task"]](request)
        if isinstance(found, dict):
            yield found
        else:
            yield from found
    except Exception as error:  # whatever it is, the other measurements go on
        yield failure(error)
