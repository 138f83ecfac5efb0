"""Peak memory of the scan's forward and backward, for a process of its own (`benchmarks.child`)."""

from functools import partial

import torch

from benchmarks.kernels import rivals
from benchmarks.kernels.scan_case import Shape, gradients, like_output, our_tensors, run_ours
from benchmarks.measure.meter import meter_of


def scan_peak(request: dict) -> dict:
    """{"tensors": peak above the inputs in units of the output, (batch, channels, length), "peak_bytes"}.

    Output, its gradient and the gradients of all inputs are part of it; the inputs themselves are not. "candidate" is
    "ours", with its "backend", or the name of a rival.
    """
    shape, dtype, device = Shape(**request["shape"]), getattr(torch, request["dtype"]), request["device"]
    run = partial(run_ours, backend=request["backend"])
    make = partial(our_tensors, dtype=dtype, layout="channels-last", device=device)
    if request["candidate"] != "ours":
        rival = next(rival for rival in rivals.all_rivals() if rival.name == request["candidate"])
        run, make = rival.run, partial(rivals.leaves, rival, device=device)
    meter = meter_of(device)
    meter.be_exact()
    small = make(Shape(request["threads"] * 2, shape.channels, 4, shape.states))
    gradients(run, small, like_output(run(small).detach()))  # loads the library and starts its threads
    tensors = make(shape)
    meter.release()
    if not meter.reset_peak():
        return {"status": "not applicable", "detail": "this system does not tell a process its peak memory"}
    before = meter.in_use()
    y = run(tensors)
    torch.autograd.grad(y, list(tensors.values()), torch.ones_like(y))
    meter.finish()
    peak = meter.peak() - before
    return {"tensors": peak / (shape.elements() * y.element_size()), "peak_bytes": peak}
