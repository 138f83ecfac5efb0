"""The smallest run there is, and the state of one, for tests."""

from dataclasses import replace
from functools import cache

import torch

from ssmvdm import TemporalConfig, UNet3D, UNet3DConfig
from ssmvdm.checkpoint import MOMENTS, State
from ssmvdm.data.source import DataConfig
from ssmvdm.training_config import DiffusionConfig, TrainingConfig

NETWORK = UNet3DConfig(
    base_channels=4,
    channel_mults=(1,),
    norm_groups=2,
    init_kernel=3,
    spatial_linear_attention=False,
    spatial_dim_head=4,
    temporal=TemporalConfig(layer="bi-s6", heads=1, dim_head=4, states=2),
)
RUN = TrainingConfig(
    network=NETWORK,
    diffusion=DiffusionConfig(timesteps=8),
    data=DataConfig("shapes", frames=2, size=4),
    steps=6,
    batch=2,
    learning_rate=1e-2,
    ema_decay=0.5,
    checkpoint_every=4,
    sample_every=0,
)


def tiny(**changes) -> TrainingConfig:
    return replace(RUN, **changes)


@cache
def state(step: int) -> State:
    """A state with weights and moments of its own for each step."""
    torch.manual_seed(step)
    network = UNet3D(RUN.network)
    weights = network.state_dict()
    averages = {name: value + 1 for name, value in weights.items()}
    moments = {
        f"{name}.{moment}": torch.tensor(float(step)) if moment == "step" else torch.rand_like(parameter)
        for name, parameter in network.named_parameters()
        for moment in MOMENTS
    }
    return State(RUN, step, step * RUN.batch, weights, averages, moments)


def same(a: State, b: State) -> bool:
    """Whether two states are the same to the bit, the configuration's length of the run aside."""
    groups = ((a.model, b.model), (a.ema, b.ema), (a.optimizer, b.optimizer))
    same_tensors = all(x.keys() == y.keys() and all(torch.equal(x[key], y[key]) for key in x) for x, y in groups)
    return same_tensors and (a.step, a.examples, a.scaler) == (b.step, b.examples, b.scaler)
