"""A run of a tiny network on the disk, as training leaves it, with random weights."""

import pytest
import torch

from ssmvdm import TemporalConfig, UNet3D, UNet3DConfig, checkpoint
from ssmvdm.data.source import DataConfig
from ssmvdm.training_config import DiffusionConfig, TrainingConfig

TINY = UNet3DConfig(base_channels=8, channel_mults=(1, 2), temporal=TemporalConfig(heads=1, dim_head=8, states=2))


@pytest.fixture(scope="session")
def run_folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("run")
    config = TrainingConfig(TINY, DiffusionConfig(timesteps=12), DataConfig("maze", frames=4, size=8))
    torch.manual_seed(0)
    online, average = UNet3D(TINY).state_dict(), UNet3D(TINY).state_dict()
    state = checkpoint.State(config, step=3, examples=3, model=online, ema=average, optimizer={})
    checkpoint.save(folder / "checkpoints", state)
    return folder
