"""Parameters, operations and memory are counted truly, and on fake tensors as on real ones."""

import math
from dataclasses import replace

import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from ssmvdm import TemporalConfig, UNet3D, accounting
from ssmvdm.operation_counts import formulas
from ssmvdm.training_config import PRESETS, TrainingConfig
from ssmvdm_kernels import bidirectional_conv1d, bidirectional_selective_scan, s4d_scan, selective_scan
from tests.training.tiny import RUN, tiny


def counted(function) -> int:
    with FlopCounterMode(display=False, custom_mapping=formulas()) as counter:
        function()
    return counter.get_total_flops()


@pytest.mark.parametrize("layer", ["attention", "linear-attention", "s4d", "bi-s4d", "s6", "bi-s6"])
def test_fake_tensors_cost_what_real_ones_do(layer):
    config = tiny(network=replace(RUN.network, temporal=replace(RUN.network.temporal, layer=layer)))
    assert accounting.step_cost(config) == accounting.step_cost(config, is_fake=False)


def test_a_step_of_several_passes(tmp_path):
    one, two = (accounting.step_cost(tiny(accumulate=count)) for count in (1, 2))
    assert two.operations == 2 * one.operations
    assert (two.parameters, two.forward_operations, two.saved_bytes) == (
        one.parameters, one.forward_operations, one.saved_bytes
    )  # fmt: skip
    # weights, averages and two moments in float32, and Adam's count of steps for each tensor
    tensors = len(list(UNet3D(RUN.network).parameters()))
    assert one.state_bytes == 4 * 4 * one.parameters + 4 * tensors
    assert one.peak_bytes > one.state_bytes + one.saved_bytes + 4 * one.parameters / 2


def test_operations_of_the_scan_by_hand():
    batch, channels, length, lanes, states = 2, 3, 5, 4, 8
    u, delta = (torch.rand(batch, channels, length, lanes, requires_grad=True) for _ in range(2))
    B, C = (torch.rand(batch, states, length, lanes, requires_grad=True) for _ in range(2))
    A = -torch.rand(channels, states)
    tokens = batch * channels * length * lanes
    forward = tokens * (7 * states + 1)
    assert counted(lambda: selective_scan(u, delta, A, B, C)) == forward
    assert counted(lambda: bidirectional_selective_scan(u, delta, A, B, C)) == 2 * forward + tokens
    both = counted(lambda: selective_scan(u, delta, A, B, C).sum().backward())
    assert both == forward + tokens * (20 * states + 4)


def test_operations_of_s4d_and_the_convolution_by_hand():
    batch, channels, length, lanes, modes, width = 2, 3, 5, 4, 8, 4
    u = torch.rand(batch, channels, length, lanes)
    decay = torch.rand(channels, modes, dtype=torch.complex64) / 2
    assert counted(lambda: s4d_scan(u, decay, decay)) == u.numel() * 11 * modes
    weight = torch.rand(channels, width)
    expected = 2 * u.numel() * (2 * width + 4)
    assert counted(lambda: bidirectional_conv1d(u, weight, weight_b=weight)) == expected


def forward_operations(layer: str, frames: int) -> int:
    """Of all temporal layers, by the difference to a network without."""
    costs = []
    for name in (layer, "none"):
        network = replace(RUN.network, temporal=TemporalConfig(layer=name, heads=1, dim_head=4, states=2))
        costs.append(accounting.step_cost(tiny(network=network, data=replace(RUN.data, frames=frames))))
    return costs[0].forward_operations - costs[1].forward_operations


@pytest.mark.parametrize("layer", ["linear-attention", "bi-s4d", "bi-s6"])
def test_linear_layers_cost_twice_as_much_for_twice_the_frames(layer):
    assert forward_operations(layer, 8) == 2 * forward_operations(layer, 4)


def test_attention_costs_more_than_twice_as_much_for_twice_the_frames():
    """Beyond twice the cost of 4 frames, 8 frames cost 4 heads dim_head (64 - 2 * 16) per pixel and layer: scores and
    their product with v, which are 2 x 2 operations per pair of frames and feature."""
    pixels, layers, features, batch = RUN.data.size**2, 4, 4, RUN.batch
    quadratic = forward_operations("attention", 8) - 2 * forward_operations("attention", 4)
    assert quadratic == batch * pixels * layers * 4 * features * (8**2 - 2 * 4**2)


@pytest.mark.parametrize("name", PRESETS)
def test_presets_are_networks_that_can_be_made_and_written(name):
    config = PRESETS[name]
    with torch.device("meta"):
        parameters = sum(value.numel() for value in UNet3D(config.network).parameters())
    assert TrainingConfig.from_dict(config.to_dict()) == config
    if config.network.base_channels == 112:
        assert 172 <= math.floor(parameters / 1e6) <= 175  # the paper's networks, made to be equal


def test_the_description_says_what_is_predicted():
    text = accounting.describe(tiny())
    assert "(2, 3, 2, 4, 4)" in text and "bi-s6, mixer mamba" in text and "predicted" in text
    assert accounting._short(999) == "999" and accounting._short(2_960_000_000_000) == "2.96 T"
