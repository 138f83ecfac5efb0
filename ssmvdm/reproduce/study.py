"""What is compared and under which conditions: one dataclass, with a preset per scale of machine."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import torch

from ssmvdm.compared import Layer, Network, layer_named
from ssmvdm.config import UNet3DConfig
from ssmvdm.data.source import DataConfig
from ssmvdm.saved import count_parameters
from ssmvdm.training_config import DiffusionConfig, TrainingConfig
from ssmvdm.unet3d import UNet3D

CONTENDERS = ("attention-sdpa", "linear-attention", "s6", "bi-s6", "bi-s4d")
REFERENCE = "bi-s6"  # whose parameters the others are given
# The number that gives each of the others as many, and what it is a multiple of: what kernels like. A layer with
# another mixer has none and keeps the reference's numbers: no number of states makes up for an MLP.
PARAMETER_KNOB = dict.fromkeys(("attention-einsum", "attention-sdpa", "linear-attention"), ("dim_head", 8))
PARAMETER_KNOB |= dict.fromkeys(("s4d", "bi-s4d", "s6"), ("states", 4))


@dataclass(frozen=True)
class Study:
    """Every layer is trained once per seed, with the same clips, steps, noise and number of optimiser steps.

    network: the U-Net of the reference; the others differ in one number, so that all have as many parameters.
    frames, batch, steps, learning_rate, ema_decay, seeds: of the training runs. Clips are maze walks.
    held_out: clips the losses are measured on, each at one t per noise band.
    samples, sample_steps: videos drawn from each trained network, by so many steps of ancestral
        sampling (DDIM, without noise on the way, needs networks that were trained for longer).
    real: clips that the feature network learns from, in feature_steps, and as many others that samples are compared
        with.
    cost_frames: of the training steps whose memory and time are measured, cost_repeats times each.
    loader_workers: processes per training run that compute clips ahead.
    """

    network: Network
    frames: int
    batch: int
    steps: int
    learning_rate: float
    seeds: int
    held_out: int
    samples: int
    sample_steps: int
    real: int
    cost_frames: tuple[int, ...]
    feature_steps: int = 300
    ema_decay: float = 0.99
    cost_repeats: int = 3
    loader_workers: int = 0
    contenders: tuple[str, ...] = CONTENDERS

    def data(self) -> DataConfig:
        return DataConfig("maze", self.frames, self.network.size)

    def training(self, layer: Layer, seed: int) -> TrainingConfig:
        """The run of one layer with one seed."""
        return TrainingConfig(
            network=self.network_of(layer),
            diffusion=DiffusionConfig(),
            data=self.data(),
            seed=seed,
            steps=self.steps,
            batch=self.batch,
            learning_rate=self.learning_rate,
            clip_norm=1.0,
            ema_decay=self.ema_decay,
            workers=self.loader_workers,
            checkpoint_every=max(1, self.steps // 4),
            sample_every=0,
            keep=1,
        )

    def layers(self) -> tuple[Layer, ...]:
        return tuple(map(layer_named, self.contenders))

    def networks(self) -> dict[str, UNet3DConfig]:
        """Configuration of every layer's network, by the layer's name."""
        return {layer.name: self.network_of(layer) for layer in self.layers()}

    def network_of(self, layer: Layer) -> UNet3DConfig:
        """A network with this layer and as many parameters as the reference's, as near as the layer's knob allows."""
        if layer.name not in PARAMETER_KNOB:
            return self.configuration(layer)
        knob, step = PARAMETER_KNOB[layer.name]
        target = parameters_of(self.configuration(layer_named(REFERENCE)))
        value = nearest_multiple(step, lambda value: parameters_of(self.configuration(layer, **{knob: value})), target)
        return self.configuration(layer, **{knob: value})

    def configuration(self, layer: Layer, **changes) -> UNet3DConfig:
        """Of the study's network with this layer, some of its numbers changed."""
        with torch.device("meta"):
            return replace(self.network, **changes).build(layer).config

    def as_json(self) -> dict:
        return asdict(self) | {"cost_frames": list(self.cost_frames), "contenders": list(self.contenders)}


def ablation(
    study: Study,
    layers: Sequence[str] = (),
    base_channels: int | None = None,
    frames: int | None = None,
    steps: int | None = None,
    seeds: int | None = None,
) -> Study:
    """The study with what is given in the place of its own. The reference takes part whatever the layers are.
    ValueError that names what cannot be."""
    for name in different("layers", layers):
        layer_named(name)
    contenders = (*layers, *(() if REFERENCE in layers else (REFERENCE,))) if layers else study.contenders
    numbers = {"frames": frames, "steps": steps, "seeds": seeds}
    for name, value in numbers.items():
        if value is not None and value < 1:
            raise ValueError(f"{name}: expected at least 1, got {value}")
    network = study.network if base_channels is None else study.network.of_width(base_channels)
    given: dict[str, Any] = {name: value for name, value in numbers.items() if value is not None}
    if frames is not None:  # losses are shown against time too
        given["cost_frames"] = tuple(sorted({*study.cost_frames, frames}))
    return replace(study, contenders=contenders, network=network, **given)


def different(name: str, values: Sequence) -> Sequence:
    """The values; ValueError if one of them comes twice."""
    if len(set(values)) < len(values):
        raise ValueError(f"{name}: the same twice in {', '.join(map(str, values))}")
    return values


def parameters_of(config: UNet3DConfig) -> int:
    with torch.device("meta"):
        return count_parameters(UNet3D(config))


def nearest_multiple(step: int, count: Callable[[int], int], target: int) -> int:
    """The positive multiple n of `step` with count(n) nearest to target, where count is linear in n."""
    once, twice = count(step), count(2 * step)
    return step * max(1, 1 + round((target - once) / (twice - once)))


def study_named(scale: str) -> Study:
    """The study of a scale: "cpu" is made for 30 minutes of two cores, "gpu" for 25 minutes of one H200, a plan that no
    machine has carried out yet. ValueError naming the scales there are."""
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    return SCALES[scale]


SCALES = {
    "cpu": Study(
        network=Network(base_channels=16, size=16, channel_mults=(1, 2), heads=2),
        frames=16,
        batch=2,
        steps=500,
        learning_rate=2e-3,
        seeds=3,
        held_out=48,
        samples=32,
        sample_steps=32,
        real=192,
        cost_frames=(16, 32, 64, 128),
    ),
    "gpu": Study(
        network=Network(base_channels=32, size=32, channel_mults=(1, 2, 4), heads=4),
        frames=64,
        batch=8,
        steps=700,
        learning_rate=1e-3,
        seeds=3,
        held_out=64,
        samples=64,
        sample_steps=32,
        real=256,
        cost_frames=(16, 64, 256),
        loader_workers=4,
    ),
}
