"""`ssmvdm sample`: what it leaves, that it goes on after a kill, and one line for everything it cannot do."""

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from ssmvdm import cli

pytest.importorskip("PIL.Image", reason="Pillow is not installed")
FAST = ("--sampler", "ddim", "--steps", 2)


def run(capsys, *arguments):
    """(exit status, stdout, stderr) of `ssmvdm sample`."""
    status = cli.main(["sample", *map(str, arguments)])
    out, err = capsys.readouterr()
    return status, out, err


def arrays(folder):
    return {path.name: np.load(path, allow_pickle=False) for path in sorted(folder.glob("*.npy"))}


def test_it_leaves_samples_their_record_and_pictures(capsys, run_folder, tmp_path):
    status, out, _ = run(capsys, run_folder, "--out", tmp_path, "--count", 3, "--batch", 2, *FAST)
    assert status == 0
    assert out == f"{tmp_path}\n"
    videos = arrays(tmp_path)
    assert list(videos) == ["sample-000000.npy", "sample-000001.npy", "sample-000002.npy"]
    for video in videos.values():
        assert (video.shape, video.dtype) == ((3, 4, 8, 8), np.float32)
        assert 0 <= video.min() < video.max() <= 1
    others = {path.name for path in tmp_path.iterdir()} - set(videos)
    assert others == {"samples.json", "samples.gif", "strips.png", "slices.png"}
    made_by = json.loads((tmp_path / "samples.json").read_text())["made_by"]
    assert (made_by["sampler"], made_by["steps"], made_by["seed"], made_by["frames"]) == ("ddim", 2, 0, 4)
    assert (made_by["weights"], made_by["timesteps"]) == ("ema", 12)

    status, out, _ = run(capsys, run_folder, "--out", tmp_path, "--count", 3, "--batch", 2, *FAST)
    assert (status, out) == (0, f"3 of 3 samples are in {tmp_path} already, whole\n{tmp_path}\n")
    assert all(np.array_equal(video, videos[name]) for name, video in arrays(tmp_path).items())
    status, _, err = run(capsys, run_folder, "--out", tmp_path, "--seed", 1, *FAST)
    assert status == 2
    assert f"{tmp_path} has samples with seed 0, not 1; choose another folder" in err


def test_weights_seed_and_threshold_change_the_samples(capsys, run_folder, tmp_path):
    seen = set()
    changes = [(), ("--weights", "online"), ("--seed", 1), ("--dynamic-threshold", 0.5), ("--precision", "bf16")]
    for i, more in enumerate(changes):
        folder = tmp_path / str(i)
        assert run(capsys, run_folder, "--out", folder, "--count", 1, *FAST, *more)[0] == 0
        seen.add(arrays(folder)["sample-000000.npy"].tobytes())
    assert len(seen) == len(changes)
    status, _, err = run(capsys, run_folder, "--out", tmp_path / "0", "--precision", "bf16", *FAST)
    assert status == 2 and "has samples with precision None, not 'bf16'; choose another folder" in err


def test_long_videos_have_a_table_by_stretches_of_the_trained_length(capsys, run_folder, tmp_path):
    status, out, _ = run(capsys, run_folder, "--out", tmp_path, "--count", 1, "--long", 3, *FAST)
    assert status == 0
    assert arrays(tmp_path)["sample-000000.npy"].shape == (3, 12, 8, 8)
    rows = [line.split()[0] for line in out.splitlines()[:4]]
    assert rows == ["frames", "1-4", "5-8", "9-12"]


def test_interpolation_steps_from_one_video_to_the_other(capsys, run_folder, tmp_path):
    run(capsys, run_folder, "--out", tmp_path / "ends", "--count", 2, *FAST)
    ends = [tmp_path / "ends" / name for name in ("sample-000000.npy", "sample-000001.npy")]
    options = ("--interpolate", *ends, "--count", 3, "--level", 1, *FAST)
    status, *_ = run(capsys, run_folder, "--out", tmp_path / "between", *options)
    assert status == 0
    between, (first, second) = list(arrays(tmp_path / "between").values()), map(np.load, ends)
    distances = [(np.abs(video - first).mean(), np.abs(video - second).mean()) for video in between]
    assert distances[0][0] < distances[1][0] < distances[2][0]
    assert distances[0][1] > distances[1][1] > distances[2][1]


@pytest.mark.skipif(os.name != "posix", reason="signals as POSIX has them")
@pytest.mark.parametrize("signal_number", [signal.SIGKILL, signal.SIGINT])
def test_an_interrupted_command_goes_on_to_the_same_bytes(capsys, run_folder, tmp_path, signal_number):
    options = ["--count", "24", "--batch", "2"]
    command = [sys.executable, "-m", "ssmvdm.cli", "sample", str(run_folder), "--out", str(tmp_path / "cut"), *options]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and not list((tmp_path / "cut").glob("sample-*.npy")):
        time.sleep(0.01)
    process.send_signal(signal_number)
    _, err = process.communicate(timeout=60)
    if signal_number == signal.SIGINT:
        assert process.returncode == 130
        assert (
            err.strip()
            .splitlines()[-1]
            .endswith(f"ssmvdm: interrupted; the same command goes on with what is in {tmp_path / 'cut'}")
        )
    assert 1 <= len(arrays(tmp_path / "cut")) < 24
    for folder in ("cut", "whole"):
        assert run(capsys, run_folder, "--out", tmp_path / folder, *options)[0] == 0
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    assert names == sorted(path.name for path in (tmp_path / "cut").iterdir())
    for name in names:
        assert (tmp_path / "cut" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes(), name


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["--count", 0], "--count: expected a whole number of at least 1, got 0"),
        (["--batch", 0], "--batch: expected a whole number of at least 1, got 0"),
        (["--long", 0], "--long: expected a whole number of at least 1, got 0"),
        (["--long", 2, "--frames", 8], "--long and --frames"),
        (["--frames", 0], "frames must be a whole number of at least 1, got 0"),
        (["--frames", 10**12], "out of memory, with batches of 8"),
        (["--size", 9], "size must be a positive multiple of 2 for this network, got 9"),
        (["--seed", -1], "seed must be a whole number of at least 0, got -1"),
        (["--steps", 13], "steps must be a whole number from 1 to 12, got 13"),
        (["--sampler", "euler"], "sampler must be ddpm, ddim or diffusers:<scheduler class>, got 'euler'"),
        (["--sampler", "diffusers:DDIMInverseScheduler"], "DDIMInverseScheduler begins at level"),
        (["--eta", 0.5], "eta belongs to sampler 'ddim'"),
        (["--dynamic-threshold", 2], "dynamic_threshold must be a quantile in (0, 1], got 2.0"),
        (["--device", "abacus"], "--device: cannot use 'abacus'"),
        (["--weights", "best"], "--weights"),
        (["--fps", 0], "--fps: expected a number above 0 and at most 100, got 0.0"),
        (["--level", 3], "--level: belongs to --interpolate"),
        (["--interpolate", "none.npy", "none.npy"], "--interpolate: cannot read none.npy"),
        (["--interpolate", "a.npy", "b.npy", "--frames", 4], "--interpolate: has frames and size from its videos"),
        (["--interpolate", "a.npy", "b.npy", "--count", 1], "--count: expected at least 2 steps"),
        (["--interpolate", "a.npy", "b.npy", "--sampler", "diffusers:DDIMScheduler"], "--interpolate: goes with"),
        (["--interpolate", "flat.npy", "flat.npy"], "expected (3, frames, size, size) float32, got (4,) float64"),
    ],
)
def test_what_it_cannot_do_gets_one_line(capsys, run_folder, tmp_path, monkeypatch, arguments, said):
    monkeypatch.chdir(tmp_path)
    np.save("flat.npy", np.zeros(4))
    status, out, err = run(capsys, run_folder, "--pictures", "gif", *arguments)
    assert status == 2
    assert out == ""
    assert err.splitlines()[-1].startswith("ssmvdm: error: ")
    assert said in err.splitlines()[-1]
    assert not list(tmp_path.rglob("*.gif"))


def test_help_says_what_there_is(capsys):
    with pytest.raises(SystemExit) as stop:
        cli.main(["sample", "--help"])
    assert not stop.value.code
    assert "--sampler" in capsys.readouterr().out


def test_a_folder_that_is_no_run_is_refused(capsys, tmp_path):
    status, _, err = run(capsys, tmp_path / "none", "--out", tmp_path / "out")
    assert status == 2
    assert err.count("\n") == 1
    assert "there is no checkpoint" in err
    assert list(tmp_path.iterdir()) == []
