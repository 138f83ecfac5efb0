"""The whole of a study: jobs, judgement of the samples, conclusions, files."""

import itertools
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np

from ssmvdm.data.export import replacing
from ssmvdm.data.source import ClipSource, open_source
from ssmvdm.evaluation.frechet import frechet_distance
from ssmvdm.evaluation.offline_features import OfflineFeatures
from ssmvdm.report.environment import describe
from ssmvdm.report.files import in_json
from ssmvdm.reproduce.held_out import held_out_videos
from ssmvdm.reproduce.jobs import device_of_study, jobs_of, kept, run_all
from ssmvdm.reproduce.page import page
from ssmvdm.reproduce.study import Study
from ssmvdm.reproduce.tables import as_markdown, labels_of
from ssmvdm.reproduce.verdicts import conclusions, cost_sentences, quantities

STEM = "reproduce"


def reproduce(study: Study, folder: Path, advance: Callable[[str, float, float], None]) -> Path:
    """Carry out what of the study is not there yet, and write reproduce.json, .md and .html into `folder`, which
    exists; returns the page. advance(what, done, total) reports progress."""
    environment = describe(threads=1)
    with timed(folder) as seconds:
        training, costs = run_all(study, folder, advance)
        total = sum(job.weight for job in jobs_of(study))
        advance("judging samples", total, total)
        settings = {"study": study.as_json()}
        frechet = kept(folder / "frechet.json", settings, lambda: judge(study, training, folder))
    result = {
        "schema": 1,
        "kind": "reproduce",
        "environment": environment,
        "device": device_of_study().type,
        "study": study.as_json(),
        "training": training,
        "costs": costs,
        "frechet": frechet,
    }
    labels = labels_of(result)
    result["conclusions"] = conclusions(quantities(result), labels)
    result["costs_in_words"] = cost_sentences(costs, labels)
    result["wall_seconds"] = seconds()
    write(folder / f"{STEM}.json", in_json(result))
    write(folder / f"{STEM}.md", as_markdown(result))
    write(folder / f"{STEM}.html", page(result, folder))
    return folder / f"{STEM}.html"


def judge(study: Study, training: list[dict], folder: Path) -> dict:
    """Frechet distance of each run's samples to held-out clips, by features that were learnt on training clips that no
    run has seen. floor: the distance of as many other held-out clips, which no network can be expected to beat."""
    source = open_source(study.data())
    unseen = (source.training_clip(study.seeds, example).video for example in range(study.real))
    extractor = OfflineFeatures.train(unseen, steps=study.feature_steps, device=device_of_study())
    real = extractor.features(held_out_videos(source, study.real))
    other = extractor.features(further_videos(source, study.real, study.samples))
    rows = []
    for run in training:
        samples = np.load(folder / run["samples"], allow_pickle=False)
        rows.append(
            {
                "layer": run["layer"],
                "seed": run["seed"],
                "distance": frechet_distance(extractor.features(samples), real),
            }
        )
    return {
        "name": extractor.name,
        "stamp": extractor.stamp,
        "features": extractor.details,
        "floor": frechet_distance(other, real),
        "rows": rows,
    }


def further_videos(source: ClipSource, skipped: int, count: int) -> np.ndarray:
    """Held-out clips after the first `skipped`."""
    return np.stack([clip.video for clip in itertools.islice(source.held_out_clips(), skipped, skipped + count)])


@contextmanager
def timed(folder: Path) -> Iterator[Callable[[], float | None]]:
    """Wall clock seconds of the work in `folder`, of all calls together, which folder/seconds.json keeps.

    None if that is not known: a call was killed, and the file says null, or there is other work without it.
    """
    path, start = folder / "seconds.json", time.monotonic()
    if path.exists():
        before = json.loads(path.read_text(encoding="ascii"))
    else:
        before = None if any(folder.iterdir()) else 0.0

    def seconds() -> float | None:
        return None if before is None else before + time.monotonic() - start

    write(path, "null\n")
    try:
        yield seconds
    finally:
        write(path, f"{json.dumps(seconds())}\n")


def write(path: Path, text: str) -> None:
    with replacing(path) as temporary:
        temporary.write_text(text, encoding="utf-8")
