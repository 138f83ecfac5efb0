"""What is measured of a network, each measurement in a process of its own (`benchmarks.child`).

training   "layer", "frames", "network", "threads", "repeats", "seconds", "memory_limit_bytes"
saved      "layer", "frames": [...], "network", "threads"
modes      "layer", "frames", "network", "threads", "repeats", "seconds"
"""

import gc
import time
from dataclasses import replace

import torch
import torch._dynamo  # what an optimizer imports when it is made: here, before anything is timed

from benchmarks.measure import process_memory, timing
from benchmarks.measure.gate import CaptureTemporal, Check, Gate, layer_checks, training_checks
from benchmarks.measure.saved import count_parameters, network_saved_bytes, saved_bytes
from benchmarks.shapes import Layer, Network, layer_named
from ssmvdm import GaussianDiffusion
from ssmvdm.data import maze
from ssmvdm.diffusion import to_model_range

WARM_UP = Network(base_channels=8, size=8)
GRADIENT_FLOOR = 1e-4  # gradients of the bench network are compared on this scale at least
CROSS_CHECK = (Network(base_channels=16, size=16, heads=2), 8)  # network and frames small enough to count on the CPU


class TrainingStep:
    """The real thing: clips of the maze, noise, l2 loss, backward, Adam. Step i is a function of (seed, i)."""

    def __init__(self, network: Network, layer: Layer, frames: int):
        torch.manual_seed(0)
        self.network, self.frames = network, frames
        self.model = network.build(layer)
        self.diffusion = GaussianDiffusion(loss="l2")
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)

    def batch(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(x0 (1, 3, f, h, w) in [-1, 1], t (1,), noise like x0)."""
        generator = torch.Generator().manual_seed(index)
        x0 = to_model_range(torch.from_numpy(maze.clips(index, 1, self.frames, self.network.size)))
        t = torch.randint(self.diffusion.timesteps, (1,), generator=generator)
        return x0, t, torch.randn(x0.shape, generator=generator)

    def loss(self, x0, t, noise) -> torch.Tensor:
        return self.diffusion.training_loss(self.model, x0, t, noise)

    def run(self, x0, t, noise) -> float:
        """One optimiser step; returns the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(x0, t, noise)
        loss.backward()
        self.optimizer.step()
        return loss.item()


def training(request: dict) -> dict:
    """Step time and peak memory of a training step, behind the gate: a failed gate leaves no numbers."""
    layer, network = layer_named(request["layer"]), Network(**request["network"])
    TrainingStep(WARM_UP, layer, frames=2).run(*TrainingStep(WARM_UP, layer, frames=2).batch(0))
    process_memory.release_free_memory()
    if request["memory_limit_bytes"]:
        process_memory.limit_further_bytes(request["memory_limit_bytes"])
    baseline = process_memory.resident_bytes() or process_memory.lifetime_peak_bytes()

    step = TrainingStep(network, layer, request["frames"])
    first = step.batch(0)
    with CaptureTemporal(step.model) as capture:
        saved, loss = saved_bytes(lambda: step.loss(*first), list(step.model.parameters()))
    loss.backward()
    checks = layer_checks(capture.inputs) + training_checks(loss.item(), step.model)
    step.optimizer.step()  # the warm-up ends here, and Adam's moments exist
    del loss, capture

    seconds, peaks, began = [], [], time.perf_counter()
    for index in range(1, request["repeats"] + 1):
        batch = step.batch(index)
        gc.collect()
        is_reset = process_memory.reset_peak()
        start = time.perf_counter()
        loss = step.run(*batch)
        seconds.append(time.perf_counter() - start)
        peaks.append(process_memory.peak_bytes() - baseline)
        if time.perf_counter() - began > request["seconds"]:
            break
    gate = Gate(tuple(checks + [rename(check, "last step: ") for check in training_checks(loss, step.model)]))
    record = {"gate": gate.as_json(), "parameters": count_parameters(step.model)}
    if not gate.has_passed:
        return record | {"status": "gate failed", "detail": gate.first_failure()}
    return record | {
        "status": "ok",
        "detail": "",
        "step_seconds": seconds,
        "peak_bytes": peaks,
        "peak_is_per_step": is_reset,
        "lifetime_peak_bytes": process_memory.lifetime_peak_bytes() - baseline,
        "baseline_bytes": baseline,
        "saved_bytes": saved,
    }


def rename(check: Check, prefix: str) -> Check:
    return Check(prefix + check.name, check.value, check.bound)


def modes(request: dict) -> dict:
    """What memory "lean" costs: time of a training step over that of "fast", in turns in one process. The gate: both
    modes have the same loss and the same gradients, to rounding."""
    layer, network = layer_named(request["layer"]), Network(**request["network"])
    steps = {mode: TrainingStep(replace(network, memory=mode), layer, request["frames"]) for mode in ("fast", "lean")}
    batch = steps["fast"].batch(0)
    losses = {mode: step.loss(*batch) for mode, step in steps.items()}
    for loss in losses.values():
        loss.backward()
    pairs = zip(*(step.model.parameters() for step in steps.values()), strict=True)
    differences = [(a.grad - b.grad).abs().max() / a.grad.abs().max().clamp(min=GRADIENT_FLOOR) for a, b in pairs]
    gate = Gate(
        (
            Check("loss, lean against fast", abs(losses["lean"].item() / losses["fast"].item() - 1.0), 1e-5),
            Check("a parameter's gradient, lean against fast", max(differences).item(), 1e-3),
        )
    )
    if not gate.has_passed:
        return {"gate": gate.as_json(), "status": "gate failed", "detail": gate.first_failure()}
    del losses
    functions = {mode: (lambda step=step: step.run(*batch)) for mode, step in steps.items()}
    samples = timing.interleaved(functions, 2 * request["repeats"] - 1, request["seconds"])
    return {
        "gate": gate.as_json(), "status": "ok", "detail": "", "step_seconds": samples,
        "parameters": count_parameters(steps["lean"].model),
        "ratio": timing.ratio(samples["lean"], samples["fast"]),
    }  # fmt: skip


def saved(request: dict) -> dict:
    """Saved bytes for each number of frames, on fake tensors. The gate is a small network of the same layers: its count
    on fake tensors is that on real ones, and backward reaches every parameter."""
    layer, network = layer_named(request["layer"]), Network(**request["network"])
    small, frames = CROSS_CHECK
    fake, real = (network_saved_bytes(small, layer, frames, is_fake) for is_fake in (True, False))
    difference = float(abs(fake["saved_bytes"] - real["saved_bytes"]))
    gate = Gate(
        (
            Check("saved bytes, fake against real tensors of a small network", difference, 0.0),
            Check("parameters of a small network without a gradient", float(len(real["unreached"])), 0.0),
        )
    )
    rows = []
    for frames in request["frames"]:
        row = {"frames": frames, "gate": gate.as_json()}
        if gate.has_passed:
            row |= {"status": "ok", "detail": ""} | network_saved_bytes(network, layer, frames)
        else:
            row |= {"status": "gate failed", "detail": gate.first_failure()}
        rows.append(row)
    return {"rows": rows}
