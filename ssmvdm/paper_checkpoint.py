"""The authors' training checkpoints as ours: weights and averages, to sample from and to evaluate.

Theirs is a file model-N.pt with "step", and the diffusion process's tensors under "model" and, averaged, under "ema":
the network's as denoise_fn.module.* (denoise_fn.* where it was not run in parallel) and the noise schedule's. The
network's keyword arguments are not in it. Adam's moments are, but without names: training goes on with fresh ones, and
only with the configuration that stands under "config" in our state.json, whose learning rate is 1e-4.
"""

from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from ssmvdm.checkpoint import MOMENTS, State
from ssmvdm.convert import unet_from_paper
from ssmvdm.data.source import DataConfig
from ssmvdm.data.torch_files import load_tensors
from ssmvdm.diffusion import GaussianDiffusion
from ssmvdm.training_config import DiffusionConfig, TrainingConfig

NETWORK_PREFIXES = ("denoise_fn.module.", "denoise_fn.")


def state_from_paper(path: Path, arguments: Mapping, data: DataConfig, loss: str = "l2") -> State:
    """The state of a run with their weights. arguments: of their Unet3D. data, loss: what it was trained on and with.

    Raises ValueError naming what is missing, unknown or of the wrong kind.
    """
    content = load_tensors(path)
    if not isinstance(content, dict) or not isinstance(content.get("step"), int) or content["step"] < 0:
        raise ValueError(f"{path} is not a training checkpoint: it has no 'step'")
    parts = {part: _tensors(path, content, part) for part in ("model", "ema")}
    network, ema = (unet_from_paper(arguments, _network(path, part)) for part in parts.values())
    diffusion = DiffusionConfig(_timesteps(path, parts["model"]), loss)
    config = TrainingConfig(network=network.config, diffusion=diffusion, data=data)
    moments = {
        f"{name}.{moment}": torch.zeros(() if moment == "step" else parameter.shape)
        for name, parameter in network.named_parameters()
        for moment in MOMENTS
    }
    return State(config, content["step"], content["step"], network.state_dict(), ema.state_dict(), moments)


def _tensors(path: Path, content: dict, part: str) -> dict[str, Tensor]:
    tensors = content.get(part)
    if not isinstance(tensors, Mapping) or not all(isinstance(value, Tensor) for value in tensors.values()):
        raise ValueError(f"{path} is not a training checkpoint: it has no tensors by name under {part!r}")
    return dict(tensors)


def _network(path: Path, tensors: dict[str, Tensor]) -> dict[str, Tensor]:
    for prefix in NETWORK_PREFIXES:
        network = {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
        if network:
            return network
    raise ValueError(f"{path} has no tensors of a network: their names begin with {NETWORK_PREFIXES[0]}")


def _timesteps(path: Path, tensors: dict[str, Tensor]) -> int:
    """The length of their noise schedule, which must be the cosine one."""
    betas = tensors.get("betas")
    if betas is None or betas.ndim != 1 or not len(betas):
        raise ValueError(f"{path} has no noise schedule, a list 'betas'")
    ours = GaussianDiffusion(len(betas)).betas.float()
    if not torch.allclose(betas.float(), ours, rtol=torch.finfo(torch.float32).eps, atol=0):  # stored rounded
        raise ValueError(f"the noise schedule of {path} is not the cosine one of {len(betas)} steps")
    return len(betas)
