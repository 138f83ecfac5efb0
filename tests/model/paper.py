"""The authors' numbers, read from tests/data/paper."""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import safe_open
from torch import Tensor, nn

from ssmvdm import convert

DATA = Path(__file__).parents[1] / "data" / "paper"
LAYERS = (
    "layer_s4d_v20",
    "layer_bi-s4d_v10",
    "layer_bi-s4d_v20",
    "layer_s6_v20",
    "layer_bi-s6_v1",
    "layer_bi-s6_v2",
    "layer_bi-s6_v10",
    "layer_bi-s6_v20",
)
UNETS = ("unet_attn", "unet_bi-s4d_v20", "unet_bi-s6_v20")


@dataclass
class Fixture:
    config: dict
    tensors: dict[str, Tensor]  # all but the two below
    state_dict: dict[str, Tensor]
    grads: dict[str, Tensor]


def load(name: str) -> Fixture:
    with safe_open(DATA / f"{name}.safetensors", "pt") as file:
        config = json.loads(file.metadata()["config"])
        everything = {key: file.get_tensor(key) for key in file.keys()}
    parts = {"state_dict": {}, "grads": {}, "": {}}
    for key, tensor in everything.items():
        part, slash, rest = key.partition("/")
        parts[part if slash else ""][rest if slash else key] = tensor
    return Fixture(config, parts[""], parts["state_dict"], parts["grads"])


def architecture(name: str) -> str:
    """The authors' name of a layer's architecture, which is in the file's name."""
    return name.split("_")[1]


def relative_error(actual: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what is expected."""
    return ((actual.double() - expected.double()).norm() / expected.double().norm()).item()


def check_gradients(model: nn.Module, expected: dict[str, Tensor], limit: float) -> None:
    """Every expected gradient to `limit` relative.

    A bias in front of a GroupNorm with one channel per group has gradient zero; what float32 leaves of it is no more
    than its resolution of the whole gradient, and is held to that.
    """
    floor = torch.finfo(torch.float32).eps * torch.stack([g.double().norm() for g in expected.values()]).norm()
    gradients = paper_gradients(model)
    assert set(expected) <= set(gradients)
    for name, wanted in expected.items():
        error = (gradients[name].double() - wanted.double()).norm()
        assert error <= limit * wanted.double().norm() + floor, name


def paper_gradients(model: nn.Module) -> dict[str, Tensor]:
    """The model's gradients under the authors' names and in their shapes."""
    return {name: p.grad.reshape(shape) for name, shape, p in convert.paper_parameters(model)}


def as_video(sequences: Tensor) -> Tensor:
    """(sequences, frames, channels) -> (1, channels, frames, sequences, 1)."""
    return sequences.permute(2, 1, 0)[None, ..., None]


def as_sequences(video: Tensor) -> Tensor:
    """The inverse of as_video."""
    return video[0, ..., 0].permute(2, 1, 0)
