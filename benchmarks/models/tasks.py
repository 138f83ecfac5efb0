"""What is measured of a network, each measurement in a process of its own (`benchmarks.child`).

training, sampling   "layer", "frames", "network", "device", "threads", "repeats", "seconds", "memory_limit_bytes"
modes                "layer", "frames", "network", "device", "threads", "repeats", "seconds"
counts               "layer", "frames": [...], "network", "widths", "width_frames", "memories_bytes", "threads"
"""

import gc
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import cache, partial
from typing import Any

import torch
import torch._dynamo  # what an optimizer imports when it is made: here, before anything is timed

from benchmarks.measure import timing
from benchmarks.measure.gate import CaptureTemporal, Check, Gate, inference_checks, layer_checks, training_checks
from benchmarks.measure.meter import Meter, meter_of
from benchmarks.models.search import crossing, largest
from ssmvdm import GaussianDiffusion
from ssmvdm.compared import Layer, Network, layer_named
from ssmvdm.data import maze
from ssmvdm.diffusion import to_model_range
from ssmvdm.samplers import ddpm, noise_like
from ssmvdm.sampling import denoiser, sample_generator
from ssmvdm.saved import count_parameters, network_saved_bytes, saved_bytes

WARM_UP = Network(base_channels=8, size=8)
GRADIENT_FLOOR = 1e-4  # gradients of the bench network are compared on this scale at least
GUESS_FRAMES = (16, 64, 256)  # bytes are a parabola of the frames: three counts give a guess that hardly needs a search
STATE_COPIES = 5  # of the parameters: weights, gradients, two moments, averages
CROSS_CHECK = (Network(base_channels=16, size=16, heads=2), 8)  # network and frames small enough to count on the CPU


class TrainingStep:
    """The real thing: clips of the maze, noise, l2 loss, backward, Adam. Step i is a function of (seed, i)."""

    def __init__(self, network: Network, layer: Layer, frames: int, device: str):
        torch.manual_seed(0)
        self.network, self.frames, self.device = network, frames, device
        self.model = network.build(layer).to(device)
        self.diffusion = GaussianDiffusion(loss="l2")
        self.optimizer = torch.optim.Adam(self.model.parameters(), lr=1e-4)

    def batch(self, index: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """(x0 (1, 3, f, h, w) in [-1, 1], t (1,), noise like x0)."""
        generator = torch.Generator().manual_seed(index)
        x0 = to_model_range(torch.from_numpy(maze.clips(index, 1, self.frames, self.network.size)))
        t = torch.randint(self.diffusion.timesteps, (1,), generator=generator)
        noise = torch.randn(x0.shape, generator=generator)
        return x0.to(self.device), t.to(self.device), noise.to(self.device)

    def loss(self, x0, t, noise) -> torch.Tensor:
        return self.diffusion.training_loss(self.model, x0, t, noise)

    def run(self, x0, t, noise) -> float:
        """One optimiser step; returns the loss."""
        self.optimizer.zero_grad(set_to_none=True)
        loss = self.loss(x0, t, noise)
        loss.backward()
        self.optimizer.step()
        return loss.item()


class DenoisingStep:
    """One level of ancestral sampling of one clip, from pure noise. Step i is a function of (seed, i)."""

    def __init__(self, network: Network, layer: Layer, frames: int, device: str):
        torch.manual_seed(0)
        self.model = network.build(layer).eval().to(device)
        self.diffusion, self.device = GaussianDiffusion(), device
        self.shape = (1, 3, frames, network.size, network.size)

    def noise(self, index: int) -> torch.Tensor:
        return noise_like(torch.empty(self.shape, device=self.device), [sample_generator(0, index)])

    def run(self, noise: torch.Tensor) -> torch.Tensor:
        return ddpm(self.diffusion, denoiser(self.model), noise, [None], steps=1)


def training(request: dict) -> dict:
    """Step time and peak memory of a training step, behind the gate: a failed gate leaves no numbers."""
    layer, network, device = layer_named(request["layer"]), Network(**request["network"]), request["device"]
    meter = meter_of(device)
    meter.be_exact()
    warm_up = TrainingStep(WARM_UP, layer, 2, device)
    warm_up.run(*warm_up.batch(0))
    del warm_up
    baseline = start_measuring(meter, request)

    step = TrainingStep(network, layer, request["frames"], device)
    first = step.batch(0)
    with CaptureTemporal(step.model) as capture:
        saved, loss = saved_bytes(lambda: step.loss(*first), list(step.model.parameters()))
    loss.backward()
    checks = layer_checks(capture.inputs) + training_checks(loss.item(), step.model)
    step.optimizer.step()  # the warm-up ends here, and Adam's moments exist
    del loss, capture

    measured, last = measured_steps(lambda index: partial(step.run, *step.batch(index)), request, meter, baseline)
    checks += [rename(check, "last step: ") for check in training_checks(last, step.model)]
    return gated(checks, step.model, measured | {"saved_bytes": saved})


def sampling(request: dict) -> dict:
    """Time and peak memory of a denoising step as the samplers take it, behind the gate."""
    layer, network, device = layer_named(request["layer"]), Network(**request["network"]), request["device"]
    meter = meter_of(device)
    meter.be_exact()
    warm_up = DenoisingStep(WARM_UP, layer, 2, device)
    warm_up.run(warm_up.noise(0))
    del warm_up
    baseline = start_measuring(meter, request)

    step = DenoisingStep(network, layer, request["frames"], device)
    with CaptureTemporal(step.model) as capture:
        step.run(step.noise(0))
    checks = inference_checks(capture.inputs)
    del capture

    measured, last = measured_steps(lambda index: partial(step.run, step.noise(index)), request, meter, baseline)
    checks.append(Check("values of the last video that are not finite", float((~last.isfinite()).sum()), 0.0))
    return gated(checks, step.model, measured)


def start_measuring(meter: Meter, request: dict) -> int:
    """The base line: bytes in use once the warm-up is over. The limit holds from here on."""
    meter.release()
    if request["memory_limit_bytes"]:
        meter.limit_further(request["memory_limit_bytes"])
    return meter.in_use()


def measured_steps(
    prepare: Callable[[int], Callable[[], object]], request: dict, meter: Meter, baseline: int
) -> tuple[dict, Any]:
    """(peak memory of one step, then time of so many, what the last one returned). prepare(index) makes a step,
    neither timed nor measured. Of several timed steps the first is a warm-up: it fills the memory that they reuse."""
    step = prepare(1)
    meter.release()
    is_reset = meter.reset_peak()
    last = step()
    meter.finish()
    measured = {"peak_bytes": [meter.peak() - baseline], "peak_is_per_step": is_reset, "baseline_bytes": baseline}
    meter.be_fast()
    seconds: list[float] = []
    repeats, began = request["repeats"], time.perf_counter()
    while repeats and len(seconds) <= repeats and time.perf_counter() - began <= request["seconds"]:
        step = prepare(len(seconds) + 2)
        last = None
        gc.collect()
        meter.finish()
        start = time.perf_counter()
        last = step()
        meter.finish()
        seconds.append(time.perf_counter() - start)
    return measured | {"step_seconds": seconds[1:] or seconds}, last


def gated(checks: list[Check], model: torch.nn.Module, measured: dict) -> dict:
    """The row: what was measured if every check has passed."""
    gate = Gate(tuple(checks))
    row = gate.as_row() | {"parameters": count_parameters(model)}
    return row | measured if gate.has_passed else row


def rename(check: Check, prefix: str) -> Check:
    return Check(prefix + check.name, check.value, check.bound)


def modes(request: dict) -> dict:
    """What memory "lean" costs: time of a training step over that of "fast", in turns in one process. The gate: both
    modes have the same loss and the same gradients, to rounding."""
    layer, network = layer_named(request["layer"]), Network(**request["network"])
    steps = {
        mode: TrainingStep(replace(network, memory=mode), layer, request["frames"], request["device"])
        for mode in ("fast", "lean")
    }
    batch = steps["fast"].batch(0)
    with without_tf32():
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
        return gate.as_row()
    del losses
    functions = {mode: (lambda step=step: step.run(*batch)) for mode, step in steps.items()}
    steps_each = 2 * request["repeats"] - 1
    samples = timing.in_turns(timing.HostTimer(), functions, steps_each, request["seconds"], least_turns=3)
    return gate.as_row() | {
        "step_seconds": {mode: [seconds for block in blocks for seconds in block] for mode, blocks in samples.items()},
        "parameters": count_parameters(steps["lean"].model),
        "ratio": timing.ratio(samples["lean"], samples["fast"]),
    }


@contextmanager
def without_tf32() -> Iterator[None]:
    """Convolutions and matrix products of a GPU in float32, whose rounding the gate allows. cuDNN's default is TF32."""
    libraries = (torch.backends.cudnn, torch.backends.cuda.matmul)
    before = [library.allow_tf32 for library in libraries]
    try:
        for library in libraries:
            library.allow_tf32 = False
        yield
    finally:
        for library, allowed in zip(libraries, before, strict=True):
            library.allow_tf32 = allowed


def counts(request: dict) -> dict:
    """What is counted of a network on fake tensors: {"saved": against frames, "widths": against base width,
    "predicted": the largest number of frames for each memory}, each a list of rows. The gate is a small network of the
    same layers: its count on fake tensors is that on real ones, and backward reaches every parameter."""
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
    if not gate.has_passed:
        return gate.as_row()

    @cache
    def count(width: int, frames: int) -> dict:
        counted = network_saved_bytes(network.of_width(width), layer, frames)
        return counted | {"training_bytes": training_bytes(**counted)}

    own = partial(count, network.base_channels)
    saved = [{"frames": frames} | own(frames) for frames in request["frames"]]
    places = [(width, frames) for frames in request["width_frames"] for width in request["widths"]]
    widths = [{"base_channels": width, "frames": frames} | count(width, frames) for width, frames in places]
    points = [(frames, own(frames)["training_bytes"]) for frames in GUESS_FRAMES]
    predicted = []
    for memory in request["memories_bytes"]:
        guess = crossing(points, memory)
        most, _ = largest(lambda frames, memory=memory: own(frames)["training_bytes"] <= memory, guess)
        predicted.append({"memory_bytes": memory, "most_frames": most} | ({} if most == 0 else own(most)))
    return gate.as_row() | {"saved": saved, "widths": widths, "predicted": predicted}


def training_bytes(saved_bytes: int, parameters: int) -> int:
    """What is there between forward and backward of training, float32: weights, gradients, Adam's two moments, the
    weights' averages, and what is saved for backward. What backward itself needs comes on top."""
    return STATE_COPIES * 4 * parameters + saved_bytes
