"""Training with frames that attend only to themselves: for some of the clips, drawn with the example."""

import copy
from dataclasses import replace

import pytest
import torch

from ssmvdm.data.source import open_source
from ssmvdm.examples import Examples
from ssmvdm.training import Run
from ssmvdm.training_config import TrainingConfig
from tests.training.tiny import NETWORK, RUN, tiny

ATTENTION = replace(NETWORK, temporal=replace(NETWORK.temporal, layer="attention"))


def examples(share: float) -> Examples:
    return Examples(open_source(RUN.data), RUN.seed, 8, focus_present=share)


def test_the_share_of_the_examples_that_have_it():
    for share in (0, 0.25, 1):
        drawn = [examples(share)[n] for n in range(400)]
        found = sum(bool(example.focus_present) for example in drawn) / len(drawn)
        assert abs(found - share) <= 5 * (share * (1 - share) / len(drawn)) ** 0.5  # five standard deviations
        plain = examples(0)
        for n in range(4):
            assert all(torch.equal(a, b) for a, b in zip(drawn[n][:5], plain[n][:5], strict=True))


def test_a_step_shows_the_network_whose_frames_are_alone(tmp_path):
    config = tiny(network=ATTENTION, batch=8, focus_present=0.5)
    run = Run(config, tmp_path / "run")
    before = copy.deepcopy(run.network)
    record, _ = run.advance(False)
    drawn = [examples(0.5)[n] for n in range(config.batch)]
    x0, t, noise, _, _, focus_present = (torch.stack(parts) for parts in zip(*drawn, strict=True))
    assert 0 < focus_present.sum() < len(focus_present)

    def loss(mask):
        with torch.no_grad():
            return run.diffusion.training_loss(before, x0, t, noise, focus_present=mask).item()

    assert record["loss"] == loss(focus_present)
    assert record["loss"] != loss(~focus_present)


def test_what_cannot_be_is_refused():
    with pytest.raises(ValueError, match=r"focus_present: needs .*layer 'attention', got 0\.5 and 'bi-s6'"):
        tiny(focus_present=0.5)
    with pytest.raises(ValueError, match=r"focus_present must be .* got 1\.5"):
        tiny(network=ATTENTION, focus_present=1.5)
    assert TrainingConfig.from_dict(tiny(network=ATTENTION, focus_present=1).to_dict()).focus_present == 1
