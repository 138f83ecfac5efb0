"""Peak memory of the scan's forward and backward, for a process of its own (`benchmarks.child`)."""

import torch

from benchmarks.kernels import rivals
from benchmarks.kernels.scan_case import Shape, gradients, like_output, our_tensors, run_ours
from benchmarks.measure import process_memory


def scan_peak(request: dict) -> dict:
    """{"tensors": peak above the inputs in units of one (batch, channels, length) tensor, "peak_bytes"}.

    Output, its gradient and the gradients of all inputs are part of it; the inputs themselves are not. "candidate" is
    "ours" or the name of a rival.
    """
    shape, dtype = Shape(**request["shape"]), getattr(torch, request["dtype"])
    run, make = run_ours, lambda shape: our_tensors(shape, dtype, "channels-last")
    if request["candidate"] != "ours":
        rival = next(rival for rival in rivals.RIVALS if rival.name == request["candidate"])
        run, make = rival.run, lambda shape: rivals.leaves(rival, shape)
    small = make(Shape(request["threads"] * 2, shape.channels, 4, shape.states))
    gradients(run, small, like_output(run(small).detach()))  # loads the library and starts its threads
    tensors = make(shape)
    process_memory.release_free_memory()
    if not process_memory.reset_peak():
        return {"status": "not applicable", "detail": "this system does not tell a process its peak memory"}
    before = process_memory.resident_bytes()
    y = run(tensors)
    torch.autograd.grad(y, list(tensors.values()), torch.ones_like(y))
    peak = process_memory.peak_bytes() - before
    return {"tensors": peak / (shape.elements() * dtype.itemsize), "peak_bytes": peak}
