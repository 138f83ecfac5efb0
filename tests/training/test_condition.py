"""A network with a condition: learns from the vectors of captions, and samples as they say."""

import copy
import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from ssmvdm import checkpoint, cli
from ssmvdm.data.source import DataConfig, open_source
from ssmvdm.examples import Examples, open_condition
from ssmvdm.training import Run, train
from ssmvdm.training_config import TrainingConfig
from tests.training.tiny import NETWORK, same, tiny

CLASSES = {"dark": 0.1, "light": 0.9}
VECTORS = {"dark": torch.tensor([1.0, 0.0, 0.0]), "light": torch.tensor([0.0, 1.0, 0.0])}


@pytest.fixture
def config(tmp_path) -> TrainingConfig:
    """Videos of one brightness per class, and a vector for each class."""
    root = tmp_path / "videos"
    for name, level in CLASSES.items():
        (root / name).mkdir(parents=True)
        np.save(root / name / "0.npy", np.full((3, 4, 4, 3), round(255 * level), np.uint8))
    listed = "\n".join(f"{name}/0.npy {number}" for number, name in enumerate(CLASSES, 1))
    for name in ("trainlist01.txt", "testlist01.txt"):
        (root / name).write_text(listed if name.startswith("train") else "", encoding="utf-8")
    save_file(VECTORS, tmp_path / "vectors.safetensors")
    data = DataConfig("ucf101", frames=2, size=4, path=str(root), embeddings=str(tmp_path / "vectors.safetensors"))
    return tiny(network=replace(NETWORK, cond_dim=3), data=data)


def examples(config, drop) -> Examples:
    source = open_source(config.data)
    return Examples(source, config.seed, 8, open_condition(replace(config, cond_drop=drop), source))


def test_an_example_has_the_vector_of_its_clip(config):
    for drop in (0, 0.25, 1):
        drawn = [examples(config, drop)[n] for n in range(400)]
        for example in drawn:
            name = "light" if example.x0.mean() > 0 else "dark"
            assert torch.equal(example.cond, VECTORS[name])
        share = sum(bool(example.cond_drop) for example in drawn) / len(drawn)
        assert abs(share - drop) <= 5 * (drop * (1 - drop) / len(drawn)) ** 0.5  # five standard deviations


def test_a_condition_changes_nothing_else_of_an_example(config):
    plain = Examples(open_source(config.data), config.seed, 8)
    for n in range(4):
        assert all(torch.equal(a, b) for a, b in zip(plain[n][:3], examples(config, 0.5)[n][:3], strict=True))


def test_a_step_shows_the_network_the_vectors_and_where_it_is_to_do_without(config, tmp_path):
    config = replace(config, batch=16, cond_drop=0.5)
    run = Run(config, tmp_path / "run")
    before = copy.deepcopy(run.network)
    record, _ = run.advance(False)
    drawn = [examples(config, 0.5)[n] for n in range(config.batch)]
    x0, t, noise, cond, cond_drop, _ = (torch.stack(parts) for parts in zip(*drawn, strict=True))
    assert 0 < cond_drop.sum() < len(cond_drop)

    def loss(cond, cond_drop):
        with torch.no_grad():
            return run.diffusion.training_loss(before, x0, t, noise, cond=cond, cond_drop=cond_drop).item()

    assert record["loss"] == loss(cond, cond_drop)
    assert record["loss"] != loss(cond[:, [1, 0, 2]], cond_drop)
    assert record["loss"] != loss(cond, ~cond_drop)
    assert not torch.equal(before.null_condition, run.network.null_condition)  # it is learnt like the rest


def test_a_resumed_run_with_a_condition_has_the_same_bits(config, tmp_path):
    whole = train(replace(config, sample_every=6, samples=3, sample_steps=2), tmp_path / "whole", progress=False)
    train(replace(config, steps=4), tmp_path / "parts", progress=False)
    moved = tmp_path / "elsewhere.safetensors"
    moved.write_bytes((tmp_path / "vectors.safetensors").read_bytes())
    resumed = replace(config, data=replace(config.data, embeddings=str(moved)))
    parts = train(resumed, tmp_path / "parts", progress=False)
    assert same(checkpoint.load(whole), checkpoint.load(parts))
    assert (tmp_path / "whole" / "samples" / "step-6.gif").exists()


def test_what_cannot_be_a_condition_is_refused_before_any_work(config, tmp_path):
    def refused(match, **changes):
        with pytest.raises(ValueError, match=match):
            Run(replace(config, **changes), tmp_path / "run")

    def vectors(name, content):
        path = tmp_path / f"{name}.safetensors"
        save_file(content, path)
        return replace(config.data, embeddings=str(path))

    dark = {"dark": VECTORS["dark"]}
    refused(r"no vector for 1 captions, for example 'light'", data=vectors("less", dark))
    wide = vectors("wide", dark | {"light": torch.zeros(4)})
    refused(r"expected \(3,\) floating-point for 'light', got \(4,\)", data=wide)
    refused("vector of 'light' is not finite", data=vectors("nan", dark | {"light": torch.full((3,), torch.nan)}))
    refused("cannot read", data=replace(config.data, embeddings=str(tmp_path / "none")))
    (tmp_path / "text").write_text("text")
    refused("is not a safetensors file", data=replace(config.data, embeddings=str(tmp_path / "text")))
    refused("needs the vectors of the captions", data=replace(config.data, embeddings=None))
    with pytest.raises(ValueError, match=r"data\.embeddings: needs a network with cond_dim"):
        replace(config, network=NETWORK)
    with pytest.raises(ValueError, match="embeddings is for data sets on disk"):
        DataConfig("maze", embeddings="x")
    with pytest.raises(ValueError, match=r"cond_drop must be .* got 1\.5"):
        replace(config, cond_drop=1.5)
    silent = tmp_path / "silent"
    silent.mkdir()
    np.save(silent / "0.npy", np.zeros((3, 4, 4, 3), np.uint8))
    refused("has no caption", data=replace(config.data, name="folder", path=str(silent)))


def sample(capsys, *arguments) -> tuple[int, str]:
    status = cli.main(["sample", *map(str, arguments), "--sampler", "ddim", "--steps", "2", "--pictures"])
    return status, capsys.readouterr().err


def test_samples_show_captions_in_turns(config, tmp_path, capsys):
    train(config, tmp_path / "run", progress=False)
    captions = ("--captions", "dark", "light")

    def drawn(name, *more):
        assert sample(capsys, tmp_path / "run", "--count", 3, "--out", tmp_path / name, *more) == (0, "")
        return [np.load(path) for path in sorted((tmp_path / name).glob("*.npy"))]

    shown, alone, guided = (
        drawn("a", *captions),
        drawn("b", "--captions", "light"),
        drawn("c", *captions, "--guidance", 3),
    )
    assert np.array_equal(shown[1], alone[1]) and not np.array_equal(shown[0], alone[0])
    assert not np.array_equal(shown[2], alone[2])  # the third is dark again
    assert not any(map(np.array_equal, shown, guided))
    made_by = json.loads((tmp_path / "c" / "samples.json").read_text())["made_by"]
    assert (made_by["captions"], made_by["guidance"]) == (["dark", "light"], 3.0)
    status, error = sample(capsys, tmp_path / "run", "--out", tmp_path / "a", "--captions", "light")
    assert status == 2 and "captions" in error


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (("--guidance", "2"), "--guidance: belongs to --captions"),
        (("--embeddings", "x"), "--embeddings: belongs to --captions"),
        (("--captions", "dark", "--guidance", "nan"), "--guidance: expected a finite number"),
        (("--captions", "green"), "no vector for 1 captions, for example 'green'"),
        (("--captions", "dark", "--interpolate", "a.npy", "b.npy"), "--interpolate: goes without --captions"),
    ],
)
def test_bad_captions_have_one_line(config, tmp_path, capsys, arguments, expected):
    train(replace(config, steps=1), tmp_path / "run", progress=False)
    status, error = sample(capsys, tmp_path / "run", "--out", tmp_path / "out", *arguments)
    assert (status, len(error.splitlines())) == (2, 1)
    assert expected in error
    assert not (tmp_path / "out").exists()
