"""`ssmvdm evaluate` from options to files."""

import json
from pathlib import Path

import numpy as np
import pytest

from ssmvdm.cli import main
from ssmvdm.commands import evaluate
from ssmvdm.data import moving_shapes
from tests.evaluation import stand_in

FRAMES, SIZE = 6, 16
SHORT = ["--feature-clips", "8", "--feature-steps", "2"]


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    np.save("fake.npy", moving_shapes.clips(5, 12, FRAMES, SIZE))
    np.save("one.npy", moving_shapes.clips(5, 1, FRAMES, SIZE))
    return tmp_path


def evaluated(*options: str) -> dict:
    assert main(["evaluate", "fake.npy", "--data", "shapes", *options]) == 0
    return json.loads(Path("evaluation/evaluation.json").read_text())


def test_without_a_file_every_number_is_stamped(folder, capsys):
    result = evaluated("--real-set", "10", "--seeds", "2", *SHORT)
    assert [run["stamp"] for run in result["runs"]] == ["not comparable with published FVD"] * 2
    assert [(run["real"], run["fake"]) for run in result["runs"]] == [(10, 12)] * 2
    assert result["runs"][0]["frechet_distance"] != result["runs"][1]["frechet_distance"]
    assert [run["features"]["seed"] for run in result["runs"]] == [0, 1]
    assert result["data"]["frames"] == FRAMES and result["environment"]["commit"] and result["samples"] == "fake.npy"
    page = Path("evaluation/evaluation.md").read_text()
    assert page in capsys.readouterr().out
    assert "**Not comparable with published FVD.**" in page and "(not comparable with published FVD) |" in page
    assert "mean ± standard deviation" in page
    assert sorted(path.name for path in Path("evaluation").iterdir()) == [
        "consistency-dark.svg", "consistency-light.svg", "evaluation.json", "evaluation.md",
    ]  # fmt: skip
    for appearance in ("light", "dark"):
        assert result["environment"]["device"] in Path(f"evaluation/consistency-{appearance}.svg").read_text()


def test_the_same_command_gives_the_same_numbers(folder):
    first = evaluated("--real-set", "6", "--seeds", "1", *SHORT)
    assert evaluated("--real-set", "6", "--seeds", "1", *SHORT)["runs"] == first["runs"]


@pytest.mark.filterwarnings("ignore:`torch.jit:DeprecationWarning")
def test_with_the_file_the_distance_is_fvd_and_features_are_cached(folder, capsys):
    stand_in.write(folder / "i3d.pt")
    options = ["--i3d", "i3d.pt", "--real-set", "5", "--seeds", "2"]
    first = evaluated(*options)
    assert [run["stamp"] for run in first["runs"]] == [None, None]
    assert "not comparable" not in Path("evaluation/evaluation.md").read_text()
    assert "A TorchScript file is a program" in capsys.readouterr().out
    # Seed 1 has other real videos and the same samples.
    assert first["runs"][0]["features"]["videos_computed"] == 5 + 12
    assert first["runs"][1]["features"]["videos_computed"] == 5 + 12 + 5
    again = evaluated(*options)
    assert again["runs"][-1]["features"]["videos_computed"] == 0
    distances = [run["frechet_distance"] for run in first["runs"]]
    assert [run["frechet_distance"] for run in again["runs"]] == distances
    paper = evaluated(*options, "--scaling", "paper")
    assert paper["runs"][0]["frechet_distance"] not in distances
    assert "[0, 1] as in the paper" in Path("evaluation/evaluation.md").read_text()


def test_real_set_rules_of_data_on_disk(folder, monkeypatch, capsys):
    for i, video in enumerate(moving_shapes.clips(9, 30, FRAMES + 3, SIZE)):
        split = "test" if i < 14 else "train"
        (folder / "videos" / split).mkdir(parents=True, exist_ok=True)
        np.save(folder / "videos" / split / f"{i}.npy", video)
    options = ["--data-path", "videos", "--seeds", "1", *SHORT]

    def real(*more: str) -> int:
        assert main(["evaluate", "fake.npy", "--data", "folder", *options, *more]) == 0
        return json.loads(Path("evaluation/evaluation.json").read_text())["runs"][0]["real"]

    assert real() == real("--real-set", "all") == 14
    assert real("--real-set", "all", "--merge-splits") == 30
    assert real("--real-set", "7") == 7
    monkeypatch.setattr(evaluate, "_offline", lambda *given: pytest.fail("features were learnt"))
    assert main(["evaluate", "fake.npy", "--data", "folder", *options, "--real-set", "15"]) == 2
    assert "real set: expected 15 held-out videos, the data have 14" in capsys.readouterr().err


@pytest.mark.parametrize("held_out", [0, 1])
def test_too_few_held_out_videos_are_told_as_such(folder, capsys, held_out):
    for split, videos in (("train", 3), ("test", held_out)):
        (folder / "videos" / split).mkdir(parents=True)
        for i, video in enumerate(moving_shapes.clips(9, 3, FRAMES, SIZE)[:videos]):
            np.save(folder / "videos" / split / f"{i}.npy", video)
    assert main(["evaluate", "fake.npy", "--data", "folder", "--data-path", "videos", *SHORT]) == 2
    told = f"real set: expected at least 2 held-out videos, the data have {held_out} that can be used"
    assert told in capsys.readouterr().err


def test_paired_videos_have_psnr_and_ssim(folder):
    videos = np.load("fake.npy")
    videos[0, :, 0] = np.clip(videos[0, :, 0] + 0.5, 0.0, 1.0)
    np.save("reference.npy", videos)
    paired = evaluated("--reference", "reference.npy", "--real-set", "4", "--seeds", "1", *SHORT)["paired"]
    assert paired["equal_frames"] == 12 * FRAMES - 1
    error = np.square(videos[0, :, 0].astype(float) - np.load("fake.npy")[0, :, 0]).mean()
    assert abs(paired["psnr"] + 10.0 * np.log10(error)) <= 3 * SIZE**2 * np.finfo(float).eps * paired["psnr"]
    assert 0.0 < paired["ssim"] < 1.0
    assert "PSNR of frames that differ" in Path("evaluation/evaluation.md").read_text()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["one.npy", "--data", "shapes"], "one.npy: expected at least 2 generated videos, got 1"),
        (["missing", "--data", "shapes"], "missing is not a video in .npy"),
        (["fake.npy", "--data", "mazes"], "--data: name must be one of maze, shapes"),
        (["fake.npy", "--data", "minerl"], "--data: path: 'minerl' needs the place of its files"),
        (["fake.npy", "--data", "shapes", "--merge-splits"], "--data: merge_splits is for data sets on disk"),
        (["fake.npy", "--data", "shapes", "--real-set", "all"], "--real-set: shapes is computed and has no end"),
        (["fake.npy", "--data", "shapes", "--real-set", "some"], "--real-set: expected all or a whole number"),
        (["fake.npy", "--data", "shapes", "--real-set", "1"], "--real-set: expected all or a whole number"),
        (["fake.npy", "--data", "shapes", "--seeds", "0"], "--seeds: expected a whole number of at least 1, got 0"),
        (["fake.npy", "--data", "shapes", "--feature-clips", "1"], "--feature-clips: expected a whole number"),
        (["fake.npy", "--data", "shapes", "--i3d", "fake.npy"], "expected the I3D network as TorchScript"),
        (["fake.npy", "--data", "shapes", "--scaling", "paper"], "--scaling: has a meaning with --i3d only"),
        (["fake.npy", "--data", "shapes", "--cache", "c"], "--cache: has a meaning with --i3d only"),
        (["fake.npy", "--data", "shapes", "--i3d", "x", "--feature-steps", "9"], "has a meaning without --i3d only"),
        (["fake.npy", "--data", "shapes", "--device", "tpu9"], "--device: cannot use 'tpu9'"),
        (["fake.npy"], "data"),
    ],
)
def test_bad_options_end_in_one_line_and_write_nothing(folder, capsys, options, message):
    assert main(["evaluate", *options]) == 2
    error = capsys.readouterr().err
    assert message in error and "Traceback" not in error
    assert not Path("evaluation/evaluation.json").exists()
