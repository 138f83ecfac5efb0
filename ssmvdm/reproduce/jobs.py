"""Training, sampling and measuring for a study: small jobs in processes of their own, each leaving a JSON file.

A study that is stopped goes on where it was: what a file says for the same settings is not computed again, and a
training run continues from its newest checkpoint.
"""

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median

import numpy as np
import torch

from ssmvdm.checkpoint import load_model
from ssmvdm.compared import Layer, layer_named
from ssmvdm.data.export import replacing, write_npy
from ssmvdm.data.source import open_source
from ssmvdm.diffusion import GaussianDiffusion
from ssmvdm.reproduce.held_out import band_losses, held_out_videos
from ssmvdm.reproduce.study import Study
from ssmvdm.run_log import read_log
from ssmvdm.sampling import sample_videos
from ssmvdm.saved import count_parameters, saved_bytes
from ssmvdm.training import train
from ssmvdm.unet3d import UNet3D

CURVE_POINTS = 100  # of a loss curve: the mean over each hundredth of the run
SAMPLE_SEED = 0
SAMPLES = "samples.npy"


@dataclass(frozen=True)
class Job:
    """One piece of work. kind: "training", where number is the seed, or "cost", where it is the frames of a clip.
    weight: the expected time, in arbitrary units."""

    kind: str
    layer: str
    number: int
    weight: float


def run_all(study: Study, folder: Path, advance: Callable[[str, float, float], None]) -> tuple[list[dict], list[dict]]:
    """(results of training, costs). On a CPU one process per core, so that no job's time depends on how well another
    one spreads over cores; on a GPU one at a time. advance(what, done, total) reports progress."""
    has_gpu = torch.cuda.is_available()
    work = list(jobs_of(study))
    total, done = sum(job.weight for job in work), 0.0
    results: dict[Job, dict] = {}
    context = multiprocessing.get_context("spawn")
    workers = 1 if has_gpu else os.cpu_count()
    with ProcessPoolExecutor(workers, context, None if has_gpu else _one_thread) as pool:
        futures = {pool.submit(carry_out, study, job, folder): job for job in work}
        try:
            advance("training", done, total)
            for future in as_completed(futures):
                job = futures[future]
                results[job] = future.result()
                done += job.weight
                advance(f"{job.kind} {layer_named(job.layer).label}, {job.number}", done, total)
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return tuple([results[job] for job in work if job.kind == kind] for kind in ("training", "cost"))


def jobs_of(study: Study) -> Iterator[Job]:
    """Seed after seed, so that a study that is stopped has compared all layers as often as it could."""
    training = float(study.steps * study.batch * study.frames)
    for seed in range(study.seeds):
        for name in study.contenders:
            yield Job("training", name, seed, training)
    for frames in study.cost_frames:
        for name in study.contenders:
            yield Job("cost", name, frames, float((study.cost_repeats + 1) * study.batch * frames))


def carry_out(study: Study, job: Job, folder: Path) -> dict:
    """What the job's file says, once it is there."""
    work = {"training": train_layer, "cost": measure_cost}[job.kind]
    name = job.layer.replace("/", "-")
    return work(study, layer_named(job.layer), job.number, folder / f"{job.kind}-{name}-{job.number}")


def kept(path: Path, settings: dict, compute: Callable[[], dict]) -> dict:
    """The result that `path` holds for these settings; computed and stored there if it does not."""
    settings = json.loads(json.dumps(settings))
    if path.exists():
        stored = json.loads(path.read_text(encoding="utf-8"))
        if stored["settings"] == settings:
            return stored["result"]
    result = compute()
    path.parent.mkdir(parents=True, exist_ok=True)
    with replacing(path) as temporary:
        temporary.write_text(json.dumps({"settings": settings, "result": result}, indent=1) + "\n", encoding="utf-8")
    return result


def train_layer(study: Study, layer: Layer, seed: int, folder: Path) -> dict:
    """Train, measure the held-out loss of the averaged weights, sample: {"layer", "seed", "parameters", "curve",
    "held_out", "samples"}; samples are in `folder`, the name of their file in the result."""
    config = study.training(layer, seed)
    settings = {"training": config.to_dict(), "held_out": study.held_out}
    settings |= {"samples": study.samples, "sample_steps": study.sample_steps}

    def compute() -> dict:
        train(config, folder, progress=False)
        model, _ = load_model(folder)
        model = model.to(device_of_study())
        diffusion = config.diffusion.process()
        videos = held_out_videos(open_source(config.data), study.held_out)
        samples = sample_videos(
            model, diffusion, study.samples, study.frames, config.data.size,
            steps=study.sample_steps, seed=SAMPLE_SEED,
        )  # fmt: skip
        write_npy(folder / SAMPLES, np.stack(list(samples)))
        return {
            "layer": layer.name,
            "seed": seed,
            "parameters": count_parameters(model),
            "curve": loss_curve(folder / "log.jsonl", study.steps),
            "held_out": band_losses(model, diffusion, videos, device_of_study(), study.batch),
            "samples": str(Path(folder.name) / SAMPLES),
        }

    return kept(folder / "result.json", settings, compute)


def measure_cost(study: Study, layer: Layer, frames: int, folder: Path) -> dict:
    """A training step of the study's batch with so many frames: {"layer", "frames", "saved_bytes", "step_seconds"}.

    saved_bytes is exact. step_seconds is the median; on a CPU it is time of the processor, one thread, which other work
    on the machine hardly changes.
    """
    network = study.network_of(layer)
    settings = {"network": asdict(network), "batch": study.batch, "size": study.network.size, "frames": frames}

    def compute() -> dict:
        device = device_of_study()
        torch.manual_seed(0)
        model = UNet3D(network).to(device)
        diffusion, optimizer = GaussianDiffusion(), torch.optim.Adam(model.parameters())
        x0, noise = torch.randn(2, study.batch, 3, frames, study.network.size, study.network.size, device=device)
        t = torch.arange(study.batch, device=device)

        def loss() -> torch.Tensor:
            return diffusion.training_loss(model, x0, t, noise)

        saved, _ = saved_bytes(loss, list(model.parameters()))
        seconds = []
        for _ in range(study.cost_repeats + 1):
            start = clock(device)
            optimizer.zero_grad()
            loss().backward()
            optimizer.step()
            seconds.append(clock(device) - start)
        step_seconds = median(seconds[1:])  # the first one warms up
        return {"layer": layer.name, "frames": frames, "saved_bytes": saved, "step_seconds": step_seconds}

    return kept(folder / "result.json", settings, compute)


def clock(device: torch.device) -> float:
    """Seconds: of this process's processor time, or of the wall once the GPU has nothing left to do."""
    if device.type == "cpu":
        return time.process_time()
    torch.cuda.synchronize(device)
    return time.perf_counter()


def device_of_study() -> torch.device:
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def _one_thread() -> None:
    torch.set_num_threads(1)


def loss_curve(log: Path, steps: int) -> list[tuple[float, float]]:
    """(step in the middle, mean loss) of each hundredth of the run, or of each step where there are fewer."""
    losses = np.array([record["loss"] for record in read_log(log)])
    pieces = np.array_split(np.arange(steps), min(steps, CURVE_POINTS))
    return [(float(piece.mean()) + 1, float(losses[piece].mean())) for piece in pieces]
