"""`ssmvdm sample`."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal, NamedTuple

import tyro

from ssmvdm.commands.device import device_named
from ssmvdm.commands.frame_rate import check_fps
from ssmvdm.commands.requirements import need
from ssmvdm.errors import InputError

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor

    from ssmvdm.sample_folder import SampleFolder

Sample = Callable[..., "np.ndarray"]  # (indices, progress) -> their videos
SHOWN = 16  # samples in the pictures
FRAME_WIDTH = 96  # pixels that a frame in a picture has, about


@dataclass(frozen=True)
class SampleOptions:
    """Draw videos from a trained network: one .npy each, and pictures of them. The same command goes on where an
    interrupted one stopped."""

    run: Annotated[Path, tyro.conf.Positional]
    """Folder of a training run, or one step-N folder of its checkpoints."""

    out: Path = Path("samples")
    """Folder for sample-000000.npy, ..., (3, frames, size, size) float32 in [0, 1], samples.json and the pictures."""

    count: int = 16
    """Number of videos. A larger count later adds to those that are there."""

    sampler: str = "ddpm"
    """ddpm, ddim, or diffusers:CLASS for a scheduler of diffusers, diffusers:DPMSolverMultistepScheduler, say."""

    steps: int | None = None
    """Noise levels visited. Default: all. ddim and most schedulers are made for few, 50 say."""

    eta: float | None = None
    """Noise that ddim adds on the way, from 0 (none, the default) to 1 (as much as ddpm)."""

    frames: int | None = None
    """Frames per video. Default: as trained."""

    long: int | None = None
    """This many times the frames it was trained on, instead of --frames, and a table of how they change beyond."""

    size: int | None = None
    """Height and width in pixels. Default: as trained."""

    seed: int = 0
    """Sample i depends on (seed, i) alone."""

    batch: int = 8
    """Videos computed together. It changes no noise, and a video by rounding only."""

    captions: tuple[str, ...] = ()
    """What the videos of a network with a condition show, in turns. Default: nothing in particular."""

    embeddings: Path | None = None
    """A safetensors file with the captions' vectors. Default: the one it was trained with."""

    guidance: float = 1.0
    """How far to go towards the captions: 1 as the network predicts, more is closer to them and less varied."""

    dynamic_threshold: float | None = None
    """Quantile of each predicted video that its values are scaled into [-1, 1] by. Default: they are clipped."""

    interpolate: tuple[Path, Path] | None = None
    """Instead of new videos, --count steps between these two (.npy as this command writes), by ddpm or ddim."""

    level: int | None = None
    """Noise level at which the two are mixed; the higher, the less is left of them. Default: half of all levels."""

    weights: Literal["ema", "online"] = "ema"
    """The averaged weights or those that were trained."""

    device: str = "auto"
    """cpu, cuda, ... Default: a GPU where there is one."""

    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    """bf16 or fp16: mixed precision, as in training; the sampler's own arithmetic stays float32."""

    pictures: tuple[Literal["gif", "mp4", "strips", "slices"], ...] = ("gif", "strips", "slices")
    """gif, mp4: the first 16 side by side. strips: frames in a row. slices: one row of pixels over time, as .png."""

    fps: float = 12.0
    """Frames per second of the gif and mp4."""


class Job(NamedTuple):
    """trained: frames that the network was trained on."""

    folder: "SampleFolder"
    sample: Sample
    trained: int


def run(options: SampleOptions) -> None:
    from tqdm import tqdm

    _check(options)
    job = _job(options)
    work = job.folder.work(options.count, options.batch)
    kept = options.count - len(work.missing)
    if kept:
        print(f"{kept} of {options.count} samples are in {options.out} already, whole")
    with tqdm(unit=" steps", disable=None, postfix=f"{kept} of {options.count} videos") as bar:

        def progress(levels):
            levels = list(levels)
            bar.total = len(levels) * len(work.batches)
            for level in levels:
                yield level
                bar.update()

        try:
            for made, _ in enumerate(job.folder.do(work, job.sample, progress), start=kept + 1):
                bar.set_postfix_str(f"{made} of {options.count} videos")
        except (ArithmeticError, ValueError) as error:
            raise InputError(str(error)) from error
        except RuntimeError as error:
            if "allocate" not in str(error):  # as torch says it of every device
                raise
            raise InputError(f"out of memory, with batches of {options.batch}: {str(error).splitlines()[0]}") from error
        except KeyboardInterrupt:
            raise KeyboardInterrupt(f"interrupted; the same command goes on with what is in {options.out}") from None
    _draw(options, job)
    print(options.out)


def _check(options: SampleOptions) -> None:
    """Refuse what can be refused before anything is read."""
    for name, value in (("count", options.count), ("batch", options.batch), ("long", options.long)):
        if value is not None and value < 1:
            raise InputError(f"--{name}: expected a whole number of at least 1, got {value}")
    check_fps(options.fps)
    if options.long is not None and options.frames is not None:
        raise InputError("--long and --frames: both say how many frames, expected one of them")
    for name, value in (("embeddings", options.embeddings), ("guidance", options.guidance != 1)):
        if value and not options.captions:
            raise InputError(f"--{name}: belongs to --captions")
    if not math.isfinite(options.guidance):
        raise InputError(f"--guidance: expected a finite number, got {options.guidance}")
    if options.interpolate is None and options.level is not None:
        raise InputError("--level: belongs to --interpolate")
    if options.interpolate is not None:
        if options.sampler not in ("ddpm", "ddim"):
            raise InputError(f"--interpolate: goes with --sampler ddpm or ddim, got {options.sampler}")
        if options.captions:
            raise InputError("--interpolate: goes without --captions")
        if (options.frames, options.long, options.size) != (None, None, None):
            raise InputError("--interpolate: has frames and size from its videos, expected no --frames, --long, --size")
        if options.count < 2:
            raise InputError("--count: expected at least 2 steps from one video to the other, got 1")
    if options.pictures:
        need(video=("PIL",))
    if "mp4" in options.pictures:
        need(video=("av",))


def _job(options: SampleOptions) -> Job:
    """The network, and how it is sampled; InputError for what cannot be."""
    from ssmvdm.checkpoint import load_model
    from ssmvdm.digests import weights_digest
    from ssmvdm.sample_folder import SampleFolder

    device = device_named(options.device)
    try:
        model, config = load_model(options.run, options.weights)
        diffusion = config.diffusion.process(options.dynamic_threshold)
        data = config.data
        sample, special = (_between if options.interpolate else _new)(options, model.to(device), diffusion, data)
    except ValueError as error:
        raise InputError(str(error)) from error
    made_by = {
        "weights": options.weights,
        "weights_sha256": weights_digest(model),
        "timesteps": diffusion.timesteps,
        "sampler": options.sampler,
        "steps": options.steps,
        "eta": options.eta,
        "dynamic_threshold": options.dynamic_threshold,
        "seed": options.seed,
    }
    if options.precision != "fp32":
        made_by["precision"] = options.precision
        sample = _mixed(sample, options.precision, device)
    return Job(SampleFolder.open(options.out, made_by | special, str(options.run)), sample, data.frames)


def _mixed(sample: Sample, precision: str, device: "torch.device") -> Sample:
    import torch

    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}[precision]

    def mixed(*given):
        with torch.autocast(device.type, dtype):
            return sample(*given)

    return mixed


def _new(options: SampleOptions, model, diffusion, data) -> tuple[Sample, dict]:
    """New videos, and what is special about them."""
    from ssmvdm.sampling import batch_sampler

    frames = options.frames if options.frames is not None else data.frames * (options.long or 1)
    size = options.size if options.size is not None else data.size
    cond, shown = _condition(options, model, data)
    how = (options.sampler, options.steps, options.eta, options.seed, cond, options.guidance)
    return batch_sampler(model, diffusion, frames, size, *how), {"frames": frames, "size": size} | shown


def _condition(options: SampleOptions, model, data) -> "tuple[Tensor | None, dict]":
    """The vectors of all samples, (count, cond_dim), and what a record says of them; nothing without captions."""
    import torch

    from ssmvdm.data.embeddings import check_captions, read_embeddings
    from ssmvdm.digests import tensors_digest

    if not options.captions:
        return None, {}
    if model.config.cond_dim is None:
        raise InputError("--captions: need a network with a condition, this one has none")
    path = options.embeddings or (data.embeddings and Path(data.embeddings))
    if not path:
        raise InputError("--captions: need --embeddings, the run names none")
    vectors = read_embeddings(path, model.config.cond_dim)
    check_captions(options.captions, vectors, path)
    cond = torch.stack([vectors[caption] for caption in options.captions])
    turns = torch.arange(options.count) % len(cond)
    shown = {"captions": list(options.captions), "guidance": options.guidance}
    return cond[turns], shown | {"captions_sha256": tensors_digest({"cond": cond})}


def _between(options: SampleOptions, model, diffusion, data) -> tuple[Sample, dict]:
    """Videos between two, and what is special about them."""
    import hashlib

    from ssmvdm.sampling import interpolator

    videos = [_read(path) for path in options.interpolate or ()]
    level = diffusion.timesteps // 2 if options.level is None else options.level
    eta = 1.0 if options.sampler == "ddpm" else options.eta or 0.0
    sample = interpolator(
        model, diffusion, *videos, count=options.count, level=level, steps=options.steps, eta=eta, seed=options.seed
    )
    digests = [hashlib.sha256(video.tobytes()).hexdigest() for video in videos]
    return sample, {"between": digests, "level": level, "count": options.count}


def _read(path: Path) -> "np.ndarray":
    import numpy as np

    try:
        video = np.load(path, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise InputError(f"--interpolate: cannot read {path} as .npy: {error}") from error
    if not isinstance(video, np.ndarray) or video.dtype != np.float32 or video.ndim != 4:
        came = f"{getattr(video, 'shape', None)} {getattr(video, 'dtype', type(video).__name__)}"
        raise InputError(f"--interpolate: {path}: expected (3, frames, size, size) float32, got {came}")
    return video


def _draw(options: SampleOptions, job: Job) -> None:
    """The pictures, and for --long the table."""
    import numpy as np

    from ssmvdm.data import export, sheets

    shown = min(options.count, SHOWN)
    clips = np.stack([job.folder.video(index) for index in range(shown)])
    frames, size = clips.shape[2], clips.shape[3]
    scale = max(1, FRAME_WIDTH // size)
    trained = job.trained if frames > job.trained else None
    grid = export.in_grid(clips, columns=-(-shown // math.isqrt(shown)))
    if "gif" in options.pictures:
        export.write_gif(options.out / "samples.gif", grid, options.fps, scale)
    if "mp4" in options.pictures:
        export.write_mp4(options.out / "samples.mp4", grid, options.fps, scale)
    if "strips" in options.pictures:
        sheets.write_strips(options.out / "strips.png", clips, 8 if trained is None else 16, scale, trained)
    if "slices" in options.pictures:
        sheets.write_slices(options.out / "slices.png", clips, scale=scale, trained=trained)
    if options.long is not None:
        print(_table_of_windows(clips, job.trained))


def _table_of_windows(clips: "np.ndarray", trained: int) -> str:
    """Contrast and motion in each stretch of as many frames as the network was trained on."""
    import numpy as np

    from ssmvdm.evaluation.frames import frame_statistics, lag_differences

    lines = ["frames        brightness  contrast  sharpness  change from frame to frame"]
    for first in range(0, clips.shape[2], trained):
        window = clips[:, :, first : first + trained]
        brightness, contrast, sharpness = np.mean([frame_statistics(clip).mean(axis=0) for clip in window], axis=0)
        change = np.mean([lag_differences(clip)[0] for clip in window]) if trained > 1 else float("nan")
        name = f"{first + 1}-{first + window.shape[2]}"
        lines.append(f"{name:<12}{brightness:>12.3f}{contrast:>10.3f}{sharpness:>11.3f}{change:>11.3f}")
    return "\n".join(lines)
