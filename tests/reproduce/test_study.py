"""What is compared: equal parameters, equal data, and one fixed set of held-out losses."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from ssmvdm.compared import layer_named
from ssmvdm.diffusion import GaussianDiffusion, to_model_range
from ssmvdm.reproduce.held_out import BANDS, band_losses
from ssmvdm.reproduce.study import PARAMETER_KNOB, REFERENCE, SCALES, ablation, parameters_of, study_named


@pytest.mark.parametrize("scale", SCALES)
def test_all_layers_have_as_many_parameters_as_their_knob_allows(scale):
    study = study_named(scale)
    counts = {name: parameters_of(config) for name, config in study.networks().items()}
    for name, config in study.networks().items():
        if name == REFERENCE:
            continue
        knob, step = PARAMETER_KNOB[name]
        value = getattr(config.temporal, knob)
        neighbours = [study.configuration(layer_named(name), **{knob: value + sign * step}) for sign in (-1, 1)]
        for neighbour in map(parameters_of, neighbours):
            assert abs(counts[name] - counts[REFERENCE]) <= abs(neighbour - counts[REFERENCE])


@pytest.mark.parametrize("scale", SCALES)
def test_runs_differ_in_the_network_and_the_seed_alone(scale):
    study = study_named(scale)
    runs = [study.training(layer, seed) for layer in study.layers() for seed in range(study.seeds)]
    assert {replace(run, network=runs[0].network, seed=0) for run in runs} == {runs[0]}
    assert {run.network.temporal.layer for run in runs} == {layer.temporal["layer"] for layer in study.layers()}


def test_an_ablation_changes_what_it_names():
    study = study_named("cpu")
    assert ablation(study) == study
    found = ablation(study, ("bi-s6/gss", "s4d"), base_channels=24, frames=8, steps=5, seeds=1)
    assert found.contenders == ("bi-s6/gss", "s4d", REFERENCE)
    assert (found.network.base_channels, found.network.heads) == (24, 3)
    numbers = {"frames": 8, "cost_frames": (8, *study.cost_frames), "steps": 5, "seeds": 1}
    assert found == replace(study, contenders=found.contenders, network=found.network, **numbers)
    assert ablation(study, (REFERENCE, "s6")).contenders == (REFERENCE, "s6")
    networks = found.networks()
    temporal = networks["bi-s6/gss"].temporal
    assert (temporal.mixer, temporal.states) == ("gss", networks[REFERENCE].temporal.states)
    counts = {name: parameters_of(config) for name, config in networks.items()}
    assert abs(counts["s4d"] / counts[REFERENCE] - 1) < 0.01


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"layers": ("lstm",)}, "unknown layer 'lstm'"),
        ({"layers": ("s6", "s6")}, "layers: the same twice in s6, s6"),
        ({"base_channels": 12}, "base channels: expected a multiple of 8"),
        ({"frames": 0}, "frames: expected at least 1, got 0"),
        ({"steps": -1}, "steps: expected at least 1, got -1"),
        ({"seeds": 0}, "seeds: expected at least 1, got 0"),
    ],
)
def test_an_ablation_that_cannot_be(changes, message):
    with pytest.raises(ValueError, match=message):
        ablation(study_named("cpu"), **changes)


def test_an_unknown_scale():
    with pytest.raises(ValueError, match="scale must be one of cpu, gpu, got 'tpu'"):
        study_named("tpu")


class KnowsTheVideo:
    """Predicts the noise from the true videos, plus an error of its own size in each band: 1, 2 or 3."""

    def __init__(self, diffusion: GaussianDiffusion, videos: np.ndarray, batch: int):
        self.diffusion, self.batches, self.levels = diffusion, to_model_range(torch.from_numpy(videos)).split(batch), []

    def __call__(self, x, t):
        clean = self.batches[len(self.levels) // len(BANDS)]
        self.levels.append(t)
        band = t.view(-1, 1, 1, 1, 1) // (self.diffusion.timesteps / len(BANDS))
        kept = self.diffusion.sqrt_alphas_cumprod[t].view(-1, 1, 1, 1, 1)
        return (x - kept * clean) / (1 - kept.square()).sqrt() + 1 + band


def test_held_out_losses_are_those_of_fixed_noise_in_three_bands():
    diffusion = GaussianDiffusion()
    videos = np.random.default_rng(0).random((5, 3, 2, 8, 8), dtype=np.float32)
    models = [KnowsTheVideo(diffusion, videos, batch) for batch in (2, 5)]
    results = [band_losses(model, diffusion, videos, "cpu", batch) for model, batch in zip(models, (2, 5), strict=True)]
    first, second = (torch.cat(model.levels) for model in models)
    assert sorted(first.tolist()) == sorted(second.tolist())
    # x is rounded to float32, and its rounding is divided by the least standard deviation of the noise.
    rounding = np.finfo(np.float32).eps * 4 / float(diffusion.sqrt_one_minus_alphas_cumprod.min())
    for result in results:
        found = [result[band] for band in (*BANDS, "all")]
        assert np.allclose(found, [1, 4, 9, 14 / 3], rtol=0, atol=2 * 3 * rounding)
