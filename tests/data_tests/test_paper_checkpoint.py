"""The authors' training checkpoints: their files become runs of ours that predict what their network predicts."""

import json

import numpy as np
import pytest
import torch

from ssmvdm import cli
from ssmvdm import convert as convert_module
from ssmvdm.checkpoint import load, load_model
from tests.data_tests.test_videos import Planted
from tests.model import paper

STEPS, TRAINED = 256, 3000


def schedule(steps):
    """Betas of the cosine schedule, in float32, as they are stored."""
    progress = np.arange(steps + 1) / steps
    alphas = np.cos((progress + 0.008) / 1.008 * np.pi / 2) ** 2
    return torch.from_numpy(np.clip(1 - alphas[1:] / alphas[:-1], 0, 0.9999)).float()


@pytest.fixture(params=paper.UNETS)
def fixture(request):
    return paper.load(request.param)


@pytest.fixture
def shipped(fixture, tmp_path):
    """(file, arguments): what their trainer saves; the averages are the fixture's weights, the others double."""

    def process(network):
        return {"betas": schedule(STEPS), **{f"denoise_fn.module.{name}": value for name, value in network.items()}}

    online = {name: value if name.endswith("freqs") else 2 * value for name, value in fixture.state_dict.items()}
    content = {
        "step": TRAINED,
        "model": process(online),
        "ema": process(fixture.state_dict),
        "opt": {"state": {}, "param_groups": [{"lr": 1e-4, "betas": (0.9, 0.999)}]},
        "scaler": {},
    }
    torch.save(content, tmp_path / "model-3.pt")
    (tmp_path / "arguments.json").write_text(json.dumps(fixture.config))
    return tmp_path / "model-3.pt", tmp_path / "arguments.json"


def convert(capsys, shipped, out, *options):
    source, arguments = shipped
    status = cli.main([*map(str, ("convert", "checkpoint", source, out, "--arguments", arguments)), *options])
    said, complaint = capsys.readouterr()
    return status, said, complaint


def test_the_run_predicts_what_their_network_predicts(fixture, shipped, tmp_path, capsys):
    out = tmp_path / "run"
    status, said, _ = convert(capsys, shipped, out, "--frames", "16", "--size", "16", "--loss", "l1")
    assert status == 0
    assert said.strip() == str(out / "checkpoints" / f"step-{TRAINED}")
    model, config = load_model(out)
    truth = convert_module.unet_from_paper(fixture.config, fixture.state_dict).eval()  # held to theirs in test_paper
    x_t, t = fixture.tensors["x_t"], fixture.tensors["t"]
    with torch.no_grad():
        assert torch.equal(model(x_t, t), truth(x_t, t))
    assert (config.diffusion.timesteps, config.diffusion.loss) == (STEPS, "l1")
    data = config.data
    assert (data.name, data.frames, data.size, data.merge_splits) == ("minerl", 16, 16, True)
    online, _ = load_model(out, "online")
    for (name, double), single in zip(online.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(double, 2 * single), name


def test_training_can_go_on_from_it(shipped, tmp_path, capsys):
    convert(capsys, shipped, tmp_path / "run")
    state = load(tmp_path / "run" / "checkpoints" / f"step-{TRAINED}")
    assert (state.step, state.config.network.channels) == (TRAINED, 3)
    assert not any(moment.any() for moment in state.optimizer.values())


@pytest.mark.parametrize("fixture", ["unet_attn"], indirect=True)
@pytest.mark.parametrize("held", [f"checkpoints/step-{TRAINED}", "checkpoints/step-30", "log.jsonl"])
def test_a_folder_that_has_anything_is_refused_and_left_as_it_is(shipped, tmp_path, capsys, held):
    out = tmp_path / "run"
    if str(TRAINED) in held:
        assert convert(capsys, shipped, out)[0] == 0  # the same once more, with other options
    else:
        (out / "checkpoints").mkdir(parents=True)
        (out / held).write_text("of a run")
    before = {path: path.read_bytes() for path in out.rglob("*") if path.is_file()}
    shipped[0].write_bytes(b"is not read")
    status, said, complaint = convert(capsys, shipped, out, "--frames", "16")
    assert (status, said, complaint.count("\n")) == (2, "", 1)
    assert f"{out}: expected a new or empty folder, it has {out / held}" in complaint
    assert complaint.endswith("; choose another folder\n")
    assert {path: path.read_bytes() for path in out.rglob("*") if path.is_file()} == before


def with_tensor(content, name, tensor):
    return content | {"model": content["model"] | {name: tensor}}


@pytest.mark.parametrize("fixture", ["unet_bi-s6_v20"], indirect=True)
@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda content, trap: {"weights": trap}, "is not a file of tensors and nothing else"),
        (lambda content, trap: [content], "it has no 'step'"),
        (lambda content, trap: content | {"step": "3"}, "it has no 'step'"),
        (lambda content, trap: content | {"ema": None}, "no tensors by name under 'ema'"),
        (lambda content, trap: content | {"model": {"betas": schedule(STEPS)}}, "has no tensors of a network"),
        (lambda content, trap: with_tensor(content, "denoise_fn.module.more", torch.zeros(1)), "'more'"),
        (lambda content, trap: with_tensor(content, "betas", schedule(STEPS)[1:]), "is not the cosine one"),
        (lambda content, trap: with_tensor(content, "betas", torch.zeros(())), "has no noise schedule"),
    ],
)
def test_what_is_not_their_checkpoint_is_refused(shipped, tmp_path, capsys, change, reason):
    source, _ = shipped
    trace = tmp_path / "trace"
    torch.save(change(torch.load(source, weights_only=True), Planted(str(trace))), source)
    status, _, complaint = convert(capsys, shipped, tmp_path / "run")
    assert status == 2
    assert complaint.count("\n") == 1
    assert reason in complaint
    assert not trace.exists()
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("fixture", ["unet_attn"], indirect=True)
@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("{", "is not valid JSON"),
        ("[]", "expected a JSON object, got list"),
        ('{"dim": 8, "colour": 1}', "'colour'"),
    ],
)
def test_arguments_that_are_none_are_refused(shipped, tmp_path, capsys, text, reason):
    shipped[1].write_text(text)
    status, _, complaint = convert(capsys, shipped, tmp_path / "run")
    assert status == 2
    assert reason in complaint
