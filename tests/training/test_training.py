"""A run: the same whatever batch, accumulation or interruption; stopped by what is not finite; logged line by line."""

import json
import math
import os
import re
import signal
from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from PIL import Image

from ssmvdm import GaussianDiffusion, UNet3D, checkpoint, cli, lock, training
from ssmvdm.data.clip import Clip
from ssmvdm.data.source import open_source
from ssmvdm.examples import Examples, Numbers
from ssmvdm.run_log import read_log
from ssmvdm.training import Interrupted, NonFiniteError, Run, train
from tests.training.tiny import RUN, same, tiny


def quiet(config, folder, **options):
    return train(config, folder, progress=False, **options)


def logged(folder, *names):
    return [tuple(line[name] for name in names) for line in read_log(folder / "log.jsonl")]


def test_what_a_run_leaves_behind(tmp_path):
    config = tiny(steps=5, sample_every=2, sample_steps=3, samples=2)
    seen = []
    path = quiet(config, tmp_path, on_step=seen.append)
    assert path == tmp_path / "checkpoints" / "step-5"
    assert [step.name for step in checkpoint.step_folders(tmp_path / "checkpoints")] == ["step-5", "step-4"]
    assert read_log(tmp_path / "log.jsonl") == seen
    assert logged(tmp_path, "step", "examples") == [(step, 2 * step) for step in range(1, 6)]
    assert sorted(file.name for file in (tmp_path / "samples").iterdir()) == [f"step-{n}.gif" for n in (2, 4, 5)]
    with Image.open(tmp_path / "samples" / "step-5.gif") as gif:
        assert gif.size == (8, 4) and gif.n_frames == 2
    assert list((tmp_path / "tensorboard").iterdir())
    model, stored = checkpoint.load_model(tmp_path)
    assert stored == config and all(value.isfinite().all() for value in model.parameters())
    assert quiet(config, tmp_path) == path and len(logged(tmp_path, "step")) == 5  # nothing is left to do


def test_an_example_is_a_function_of_seed_and_number():
    source = open_source(RUN.data)
    a, b = Examples(source, 3, 8)[5], Examples(source, 3, 8)[5]
    assert all(map(torch.equal, a, b))
    others = (Examples(source, 4, 8)[5], Examples(source, 3, 8)[6])
    assert not any(torch.equal(a.noise, other.noise) for other in others)
    assert {int(Examples(source, 0, 4)[n].t) for n in range(64)} == {0, 1, 2, 3}
    noise = torch.stack([Examples(source, 0, 8)[n].noise for n in range(64)])
    assert abs(noise.mean()) < 5 / math.sqrt(noise.numel())  # five standard deviations of the mean


def test_processes_share_the_numbers_that_one_process_sees():
    together = [list(islice(Numbers(10, 2, rank, 2), 3)) for rank in range(2)]
    alone = list(islice(Numbers(10, 4), 3))
    assert [a + b for a, b in zip(*together, strict=True)] == alone == [[*range(n, n + 4)] for n in (10, 14, 18)]


def test_resumed_and_uninterrupted_runs_have_the_same_bits(tmp_path):
    last = quiet(tiny(steps=7), tmp_path / "a")
    quiet(tiny(steps=3), tmp_path / "b")
    with open(tmp_path / "b" / "log.jsonl", "a") as file:  # what a killed run may have left
        file.write('{"step": 4, "loss": 9.0, "gradient_norm": 9.0}\n{"step": 5, "lo')
    resumed = quiet(tiny(steps=7), tmp_path / "b")
    assert same(checkpoint.load(last), checkpoint.load(resumed))
    names = ("step", "examples", "loss", "gradient_norm")
    assert logged(tmp_path / "a", *names) == logged(tmp_path / "b", *names)


@pytest.mark.parametrize("damage", [b"\0" * 50 + b"\n", b'{"step": 2, "lo\n', b"\xff\n", b"[1]\n", b'{"loss": 1}\n'])
def test_a_damaged_line_of_the_log_stops_no_run(tmp_path, damage):
    quiet(tiny(steps=4), tmp_path)
    log = tmp_path / "log.jsonl"
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([lines[0], damage, *lines[2:]]))
    quiet(tiny(steps=6), tmp_path)
    assert logged(tmp_path, "step") == [(step,) for step in (1, 3, 4, 5, 6)]


def test_samples_that_a_killed_run_owed_are_made_when_it_goes_on(tmp_path):
    config = tiny(sample_every=3, samples=1, sample_steps=1)
    quiet(config, tmp_path)
    sheet = tmp_path / "samples" / "step-6.gif"
    content = sheet.read_bytes()
    sheet.unlink()
    quiet(config, tmp_path)
    assert sheet.read_bytes() == content


def test_a_second_run_in_the_folder_is_refused_until_the_first_has_ended(tmp_path, monkeypatch):
    monkeypatch.setattr(lock, "WAIT_S", 0.0)

    def another(record):
        with pytest.raises(ValueError, match="another process is at work there"):
            quiet(tiny(), tmp_path)

    train(tiny(), tmp_path, progress=False, on_step=another)
    quiet(tiny(steps=7), tmp_path)


def first_gradient(path) -> torch.Tensor:
    """Of a run of one step: Adam's first moment is (1 - .9) times the gradient."""
    moments = checkpoint.load(path).optimizer
    return torch.cat([moments[name].flatten() for name in sorted(moments) if name.endswith("exp_avg")]) / (1 - 0.9)


def errors(*checkpoints) -> list[float]:
    """Distance of the first gradients of runs that saw examples 0 to 3 from the one in float64, relative to that."""
    with torch.random.fork_rng():
        torch.manual_seed(RUN.seed)
        network = UNet3D(RUN.network).double()
    examples = [Examples(open_source(RUN.data), RUN.seed, 8)[n] for n in range(4)]
    x0, t, noise, *_ = (torch.stack(parts) for parts in zip(*examples, strict=True))
    GaussianDiffusion(8).training_loss(network, x0.double(), t, noise.double()).backward()
    gradients = {f"{name}.exp_avg": parameter.grad.flatten() for name, parameter in network.named_parameters()}
    truth = torch.cat([gradients[name] for name in sorted(gradients)])
    return [float((first_gradient(path) - truth).norm() / truth.norm()) for path in checkpoints]


def test_two_passes_of_two_are_one_of_four(tmp_path):
    """Both gradients are as far from that in float64 as rounding takes them, and neither twice as far as the other."""
    a = quiet(tiny(steps=1, batch=4), tmp_path / "a")
    b = quiet(tiny(steps=1, batch=2, accumulate=2), tmp_path / "b")
    found = errors(a, b)
    assert max(found) <= 2 * min(found)
    assert max(found) < torch.finfo(torch.float32).eps * math.sqrt(len(first_gradient(a)))
    assert logged(tmp_path / "a", "examples") == logged(tmp_path / "b", "examples") == [(4,)]


@pytest.mark.slow
def test_a_compiled_network_is_trained_as_exactly_as_the_plain_one(tmp_path):
    plain = quiet(tiny(steps=1, batch=4), tmp_path / "plain")
    compiled = quiet(tiny(steps=1, batch=4, compile=True), tmp_path / "compiled")
    error, error_compiled = errors(plain, compiled)
    assert error_compiled <= 2 * error and not same(checkpoint.load(plain), checkpoint.load(compiled))


def test_averages_follow_their_formula(tmp_path):
    run = Run(tiny(ema_decay=0.75), tmp_path)
    expected, steps = None, 4
    for _ in range(steps):
        run.advance(False)
        weights = run.network.output_conv.weight.detach().double()
        expected = weights if expected is None else 0.75 * expected + 0.25 * weights
    # Each step rounds a product, a sum and a difference, all at most as large as the largest weight.
    bound = steps * 3 * torch.finfo(torch.float32).eps * expected.abs().max()
    assert (run.ema.module.output_conv.weight - expected).abs().max() <= bound
    assert not torch.equal(run.ema.module.output_conv.weight, run.network.output_conv.weight)


def test_a_gradient_beyond_the_limit_is_scaled_to_it(tmp_path):
    free = quiet(tiny(steps=1), tmp_path / "a")
    norm = logged(tmp_path / "a", "gradient_norm")[0][0]
    clipped = quiet(tiny(steps=1, clip_norm=norm / 8), tmp_path / "b")
    ratio = first_gradient(clipped).norm() / first_gradient(free).norm()
    assert abs(ratio * 8 - 1) < 1e-6 + 8 * 1e-6 / norm  # torch adds 1e-6 to the norm that it divides by
    assert logged(tmp_path / "b", "gradient_norm")[0][0] == norm


def test_mixed_precision_computes_low_keeps_float32_and_resumes_exactly(tmp_path):
    config = tiny(precision="bf16")
    last = quiet(config, tmp_path / "low")
    quiet(tiny(steps=1), tmp_path / "wide")
    state = checkpoint.load(last)
    assert {value.dtype for value in (*state.model.values(), *state.ema.values())} == {torch.float32}
    error = (first := logged(tmp_path / "low", "loss")[0][0]) - logged(tmp_path / "wide", "loss")[0][0]
    assert 0 < abs(error) < torch.finfo(torch.bfloat16).eps * first
    quiet(replace(config, steps=3), tmp_path / "resumed")
    assert same(checkpoint.load(quiet(config, tmp_path / "resumed")), state)


@pytest.mark.skipif(torch.cuda.is_available(), reason="a GPU has fp16")
def test_fp16_is_not_quietly_something_else_on_the_cpu(tmp_path):
    with pytest.raises(ValueError, match="precision: fp16 needs a GPU, and this is a run on cpu; bf16 does not"):
        quiet(tiny(precision="fp16"), tmp_path)


def test_checkpointed_levels_are_trained_to_the_same_bits(tmp_path):
    quiet(tiny(steps=2, network=replace(RUN.network, checkpoint_levels=True)), tmp_path / "a")
    quiet(tiny(steps=2), tmp_path / "b")
    assert logged(tmp_path / "a", "loss") == logged(tmp_path / "b", "loss")


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_finishes_the_step_and_keeps_it(tmp_path, number):
    before = signal.getsignal(number)
    ask = lambda record: os.kill(os.getpid(), number) if record["step"] == 2 else None  # noqa: E731
    with pytest.raises(Interrupted, match=r"after step 3 of 6; the same command goes on from .*step-3"):
        quiet(tiny(), tmp_path / "a", on_step=ask)
    assert signal.getsignal(number) is before
    resumed = quiet(tiny(), tmp_path / "a")
    assert same(checkpoint.load(resumed), checkpoint.load(quiet(tiny(), tmp_path / "b")))


class Spoiled:
    """A source whose example 9 has a value that is not finite."""

    def __init__(self, source):
        self.source = source

    def training_clip(self, seed, example):
        video = self.source.training_clip(seed, example).video
        return Clip(np.where(example == 9, np.float32("inf"), video))


def test_a_loss_that_is_not_finite_stops_the_step_with_a_report(tmp_path, monkeypatch):
    monkeypatch.setattr(training, "open_source", lambda config: Spoiled(open_source(config)))
    with pytest.raises(NonFiniteError, match=r"step 5: loss (nan|inf), .*examples 8 to 9, of which \[9\] have no"):
        quiet(tiny(), tmp_path)
    report = json.loads((tmp_path / "not-finite-5-0.json").read_text())
    assert report["examples"] == [8, 9] and math.isfinite(float(report["loss_of_example"]["8"]))
    assert logged(tmp_path, "step") == [(1,), (2,), (3,), (4,)]
    monkeypatch.undo()
    assert same(checkpoint.load(quiet(tiny(), tmp_path)), checkpoint.load(quiet(tiny(), tmp_path / "clean")))


def test_a_run_goes_on_only_as_what_it_was(tmp_path):
    quiet(tiny(steps=2), tmp_path)
    with pytest.raises(ValueError, match=r"another configuration: learning_rate was 0.01 and is 0.5"):
        quiet(tiny(learning_rate=0.5), tmp_path)
    changed = tiny(data=replace(RUN.data, frames=4), network=replace(RUN.network, checkpoint_levels=True))
    told = "another configuration: network.checkpoint_levels was False and is True, data.frames was 2 and is 4"
    with pytest.raises(ValueError, match=rf"{re.escape(told)}$"):
        quiet(changed, tmp_path)
    with pytest.raises(ValueError, match=r"has a run, and it is not to be resumed"):
        quiet(tiny(), tmp_path, resume=False)
    with pytest.raises(ValueError, match=r"steps: the run in .* is at 2, got 1"):
        quiet(tiny(steps=1), tmp_path)
    found = checkpoint.load(tmp_path / "checkpoints" / "step-2")
    checkpoint.save(tmp_path / "of-two" / "checkpoints", replace(found, processes=2))
    with pytest.raises(ValueError, match=r"processes: the run in .*of-two has 2, .* number; got 1"):
        quiet(tiny(), tmp_path / "of-two")
    checkpoint.save(tmp_path / "of-unknown" / "checkpoints", replace(found, processes=None))
    assert checkpoint.load(quiet(tiny(), tmp_path / "of-unknown")).processes == found.processes == 1
    newest = tmp_path / "checkpoints" / "step-2" / "manifest.json"
    newest.write_text("{}")
    with pytest.raises(checkpoint.CheckpointError, match="no checkpoint can be used"):
        quiet(tiny(), tmp_path)


def run_command(capsys, *arguments):
    status = cli.main([str(argument) for argument in arguments])
    return status, *capsys.readouterr()


def test_the_command_trains_what_a_file_says_and_options_change(tmp_path, capsys):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(tiny(steps=9).to_dict()))
    status, out, _ = run_command(capsys, "train", file, "--out", tmp_path / "a", "--steps", 2, "--data.name", "maze")
    assert status == 0 and out.splitlines()[-1] == str(tmp_path / "a" / "checkpoints" / "step-2")
    _, config = checkpoint.load_model(tmp_path / "a")
    assert config.data.name == "maze" and config.network == RUN.network
    status, _, err = run_command(capsys, "train", file, "--out", tmp_path / "a", "--fresh")
    assert status == cli.USAGE_ERROR and "not to be resumed" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        ({"network": {"temporal": "bi-s6"}}, "temporal must be a TemporalConfig, got 'bi-s6'"),
        ({"network": {"base_channels": 10**24}}, "base_channels must be a whole number of at most 64 bits, got 1000"),
        ({"network": {"spatial_linear_attention": "no"}}, "spatial_linear_attention must be True or False, got 'no'"),
        ({"data": {"merge_splits": 1}}, "merge_splits must be True or False, got 1"),
        ({"diffusion": 256}, "diffusion must be a DiffusionConfig, got 256"),
        ({"learning_rate": "fast"}, "learning_rate must be a number, got 'fast'"),
        ({"seed": 10**30}, "seed must be a whole number of at most 64 bits, got 1000"),
        ({"clip_norm": [1]}, "clip_norm must be a number or None, got [1]"),
        ({"networks": {}}, "TrainingConfig has no field 'networks'"),
    ],
)
def test_the_command_says_in_a_line_what_is_wrong_in_a_file(capsys, tmp_path, content, expected):
    file = tmp_path / "run.json"
    file.write_text(json.dumps(content))
    for options in ([], ["--dry-run"]):
        status, _, err = run_command(capsys, "train", file, "--out", tmp_path / "run", *options)
        assert status == cli.USAGE_ERROR and f"run.json: {expected}" in err and len(err.splitlines()) == 1


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["nonsense"], "expected a .json file or one of cpu-demo"),
        (["nowhere.json"], "cannot read nowhere.json"),
        (["cpu-demo", "--steps", "0"], "steps must be a positive integer, got 0"),
        (["cpu-demo", "--precision", "fp8"], "precision must be one of fp32, bf16, fp16, got 'fp8'"),
        (["cpu-demo", "--network.base-channels", "13"], "network: base_channels must be even"),
        (["cpu-demo", "--learning-rate", "1e38"], "learning_rate must be a number above 0 and below 3e+37, got 1e+38"),
        (["cpu-demo", "--network.base-channels", "1" + 12 * "0"], "sizes that torch cannot take: Storage size calc"),
        (["cpu-demo", "--network.base-channels", "4" + 18 * "0"], "sizes that torch cannot take: empty()"),
        (["cpu-demo", "--network.base-channels", "4" + 18 * "0", "--dry-run"], "sizes that torch cannot take: empty()"),
        (["cpu-demo", "--data.frames", "1" + 18 * "0", "--dry-run"], "data: frames and size: expected a clip"),
        (["cpu-demo", "--data.size", "18", "--network.channel-mults", "1", "2", "4"], "data.size must be a multiple"),
        (["paper-minerl-256"], "path: 'minerl' needs the place of its files"),
    ],
)
def test_the_command_says_in_a_line_what_it_cannot_do(capsys, tmp_path, monkeypatch, arguments, expected):
    monkeypatch.chdir(tmp_path)
    status, _, err = run_command(capsys, "train", *arguments)
    assert status == cli.USAGE_ERROR and expected in err and len(err.splitlines()) == 1
