"""`ssmvdm evaluate`."""

import os
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from ssmvdm.commands.device import device_named
from ssmvdm.commands.requirements import need
from ssmvdm.errors import InputError

if TYPE_CHECKING:
    from ssmvdm.data.source import ClipSource
    from ssmvdm.evaluation.features import FeatureExtractor
    from ssmvdm.evaluation.sets import Samples

COMPUTED_REAL = 200  # real videos at least, of data that are computed: twice the features learnt offline


@dataclass(frozen=True)
class EvaluateOptions:
    """Compare generated videos with real ones: Frechet video distance, statistics of frames, consistency over time.

    With --i3d FILE the distance is FVD. Without it a small network is trained on the data at hand, one for each seed,
    and the number is not comparable with published FVD.
    """

    samples: Annotated[Path, tyro.conf.Positional]
    """Folder that `ssmvdm sample` filled, any folder of .npy, or one .npy (n, 3, frames, size, size)."""

    data: str
    """Where the real videos come from: maze, shapes, folder, minerl, gqn-mazes, carla, ucf101, msrvtt, moving-mnist."""

    data_path: Path | None = None
    """Place of a data set on disk."""

    merge_splits: bool = False
    """Real videos are all that there are, training ones too, as in the paper. Default: the held-out ones."""

    max_unusable: float = 0.1
    """Largest share of the videos that may turn out to be unusable."""

    real_set: str | None = None
    """all: every video once. A number: so many; the paper has 2000 for GQN-Mazes and UCF101. Default: all, and of data
    that are computed as many as there are samples, at least 200."""

    i3d: Path | None = None
    """The I3D network of FVD (Kinetics-400, logits): a state dict, or TorchScript, which is a program, and is run."""

    scaling: Literal["standard", "paper"] = "standard"
    """What I3D sees: [-1, 1] as everywhere, or [0, 1] as in the paper's code. Their numbers do not compare."""

    seeds: int = 3
    """How often to evaluate, each time with other real videos where there is a choice, and another offline network."""

    reference: Path | None = None
    """Videos of the same form that the samples should equal one by one (reconstructions, say): PSNR and SSIM."""

    out: Path = Path("evaluation")
    """Folder for evaluation.json, evaluation.md and the plot."""

    cache: Path | None = None
    """Folder for features of I3D, which are computed once per video. Default: ssmvdm/features in the user's cache."""

    feature_clips: int = 256
    """Training clips that the offline network learns from."""

    feature_steps: int = 300
    """Steps that it learns."""

    device: str = "auto"
    """cpu, cuda, ... Default: a GPU where there is one."""


def run(options: EvaluateOptions) -> None:
    count = _check(options)
    need(eval=("matplotlib",))
    import torch

    from ssmvdm.data.source import PROCEDURAL, DataConfig, open_source
    from ssmvdm.evaluation import report
    from ssmvdm.evaluation.sets import LEAST, Samples
    from ssmvdm.report.environment import describe
    from ssmvdm.report.files import prepare_folder

    device = device_named(options.device)
    samples = Samples.open(options.samples)
    if len(samples) < LEAST:
        raise InputError(f"{options.samples}: expected at least {LEAST} generated videos, got {len(samples)}")
    path = None if options.data_path is None else str(options.data_path)
    try:
        how = {"merge_splits": options.merge_splits, "max_unusable": options.max_unusable}
        data = DataConfig(options.data, samples.frames, samples.size, path, **how)
        source = open_source(data)
    except (ValueError, OSError) as error:
        raise InputError(f"--data: {error}") from error
    if options.data in PROCEDURAL and count is None:
        if options.real_set is not None:
            raise InputError(f"--real-set: {options.data} is computed and has no end, expected a number, got all")
        count = max(COMPUTED_REAL, len(samples))
    folder = prepare_folder(options.out)
    environment = describe(torch.get_num_threads())
    try:
        runs = _runs(options, source, samples, count, device)
        paired = None if options.reference is None else _paired(samples, Samples.open(options.reference))
    except ValueError as error:
        raise InputError(str(error)) from error
    result = {
        "schema": 1,
        "kind": "evaluation",
        "samples": str(options.samples),
        "made_by": samples.record,
        "data": asdict(data),
        "real_set": "all" if count is None else count,
        "seeds_change": _what_seeds_change(options, count),
        "runs": runs,
        "paired": paired,
        "environment": environment,
    }
    page = report.write_all(result, folder)
    print(report.as_markdown(result))
    print(page)


def _check(options: EvaluateOptions) -> int | None:
    """The number of real videos that was asked for, None for all or the default. Refuses before anything is read."""
    for name in ("seeds", "feature_steps", "feature_clips"):
        least = 2 if name == "feature_clips" else 1
        if getattr(options, name) < least:
            flag = name.replace("_", "-")
            raise InputError(f"--{flag}: expected a whole number of at least {least}, got {getattr(options, name)}")
    with_i3d = options.i3d is not None
    for name in ("feature_clips", "feature_steps") if with_i3d else ("scaling", "cache"):
        if getattr(options, name) != getattr(EvaluateOptions, name):
            when = "without" if with_i3d else "with"
            raise InputError(f"--{name.replace('_', '-')}: has a meaning {when} --i3d only")
    if options.real_set in (None, "all"):
        return None
    if not options.real_set.isdecimal() or int(options.real_set) < 2:
        raise InputError(f"--real-set: expected all or a whole number of at least 2, got {options.real_set!r}")
    return int(options.real_set)


def _runs(options: EvaluateOptions, source: "ClipSource", samples: "Samples", count: int | None, device) -> list[dict]:
    """One evaluation per seed."""
    from ssmvdm.evaluation.compare import evaluate
    from ssmvdm.evaluation.features import CachedFeatures
    from ssmvdm.evaluation.sets import real_videos

    i3d, runs = _i3d(options, device), []
    for seed in range(options.seeds):
        videos = real_videos(source, count, seed)  # refuses too many of them before features are learnt
        extractor = _offline(options, source, seed, device) if i3d is None else i3d
        real = _shown(videos, f"seed {seed}, real", count)
        try:
            runs.append(evaluate(real, _shown(samples, f"seed {seed}, generated", len(samples)), extractor))
        finally:
            if isinstance(extractor, CachedFeatures):
                extractor.save()
    return runs


def _i3d(options: EvaluateOptions, device) -> "FeatureExtractor | None":
    if options.i3d is None:
        return None
    from ssmvdm.evaluation.features import CachedFeatures
    from ssmvdm.evaluation.i3d import load_i3d

    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    extractor = load_i3d(options.i3d, options.scaling, device)
    return CachedFeatures(extractor, options.cache or home / "ssmvdm" / "features")


def _offline(options: EvaluateOptions, source: "ClipSource", seed: int, device) -> "FeatureExtractor":
    from tqdm import tqdm

    from ssmvdm.evaluation.offline_features import OfflineFeatures

    clips = (source.training_clip(seed, example).video for example in range(options.feature_clips))
    clips = _shown(clips, f"seed {seed}, training clips", options.feature_clips)
    with tqdm(total=options.feature_steps, desc=f"seed {seed}, features", disable=None) as bar:

        def on_step(step: int, loss: float) -> None:
            bar.update()
            bar.set_postfix(loss=f"{loss:.4f}")

        return OfflineFeatures.train(clips, seed=seed, steps=options.feature_steps, device=device, on_step=on_step)


def _shown(videos: Iterable, what: str, total: int | None) -> Iterable:
    """The videos, with a progress bar."""
    from tqdm import tqdm

    return tqdm(videos, desc=what, total=total, unit="video", disable=None)


def _paired(samples: "Samples", reference: "Samples") -> dict:
    """PSNR and SSIM of every frame against its own reference, averaged. Frames that are equal have no finite PSNR: they
    are counted instead. SSIM is None of frames smaller than its window."""
    import numpy as np

    from ssmvdm.evaluation.frames import SSIM_WINDOW, psnr, ssim

    if len(samples) != len(reference):
        raise InputError(f"--reference: expected {len(samples)} videos like the samples, got {len(reference)}")
    decibels, likeness = [], []
    for pair in zip(samples, reference, strict=True):
        decibels.append(psnr(*pair))
        if samples.size >= SSIM_WINDOW:
            likeness.append(ssim(*pair))
    unequal = [value for value in np.concatenate(decibels) if np.isfinite(value)]
    return {
        "reference": str(reference.path),
        "psnr": float(np.mean(unequal)) if unequal else None,
        "equal_frames": sum(map(len, decibels)) - len(unequal),
        "ssim": float(np.mean(likeness)) if likeness else None,
    }


def _what_seeds_change(options: EvaluateOptions, count: int | None) -> str:
    which = "which real videos are taken" if count is not None else "which frames of the real videos are taken"
    return which if options.i3d is not None else f"the network that gives the features, and {which}"
