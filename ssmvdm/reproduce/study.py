"""What is compared and under which conditions: one dataclass, with a preset per scale of machine."""

from collections.abc import Callable
from dataclasses import asdict, dataclass, replace

import torch

from benchmarks.saved import count_parameters
from benchmarks.shapes import Layer, Network, layer_named
from ssmvdm.config import UNet3DConfig
from ssmvdm.data.source import DataConfig
from ssmvdm.training_config import DiffusionConfig, TrainingConfig
from ssmvdm.unet3d import UNet3D

CONTENDERS = ("attention-sdpa", "linear-attention", "s6", "bi-s6", "bi-s4d")
REFERENCE = "bi-s6"  # whose parameters the others are given
PARAMETER_KNOB = {"attention-sdpa": "dim_head", "linear-attention": "dim_head", "s6": "states", "bi-s4d": "states"}


@dataclass(frozen=True)
class Study:
    """Every layer is trained once per seed, with the same clips, steps, noise and number of optimiser steps.

    network: the U-Net of the reference; the others differ in one number, so that all have as many parameters.
    frames, batch, steps, learning_rate, ema_decay, seeds: of the training runs. Clips are maze walks.
    held_out: clips the losses are measured on, each at one t per noise band.
    samples, sample_steps: videos drawn from each trained network, by so many DDIM steps.
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

    def data(self, frames: int | None = None) -> DataConfig:
        return DataConfig("maze", frames or self.frames, self.network.size)

    def training(self, layer: Layer, seed: int) -> TrainingConfig:
        """The run of one layer with one seed."""
        return TrainingConfig(
            network=self.networks()[layer.name],
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
        """Configuration by layer name, with as many parameters as the reference has, as near as the knob allows."""
        target = parameters_of(self.configuration(layer_named(REFERENCE)))
        return {layer.name: self._equalised(layer, target) for layer in self.layers()}

    def configuration(self, layer: Layer, **changes) -> UNet3DConfig:
        with torch.device("meta"):
            return replace(self.network, **changes).build(layer).config

    def _equalised(self, layer: Layer, target: int) -> UNet3DConfig:
        knob = PARAMETER_KNOB.get(layer.name)
        if knob is None:
            return self.configuration(layer)
        value = nearest_even(lambda value: parameters_of(self.configuration(layer, **{knob: value})), target)
        return self.configuration(layer, **{knob: value})

    def as_json(self) -> dict:
        return asdict(self) | {"cost_frames": list(self.cost_frames), "contenders": list(self.contenders)}


def parameters_of(config: UNet3DConfig) -> int:
    with torch.device("meta"):
        return count_parameters(UNet3D(config))


def nearest_even(count: Callable[[int], int], target: int) -> int:
    """The even number n >= 2 with count(n) nearest to target, where count is linear in n."""
    at_2, at_4 = count(2), count(4)
    return max(2, 2 + 2 * round((target - at_2) / (at_4 - at_2)))


def study_named(scale: str) -> Study:
    """The study of a scale: "cpu" takes 30 minutes on two cores; "gpu" is planned for 25 minutes of one H200, a plan
    that no machine has carried out yet. ValueError naming the scales there are."""
    if scale not in SCALES:
        raise ValueError(f"scale must be one of {', '.join(SCALES)}, got {scale!r}")
    return SCALES[scale]


SCALES = {
    "cpu": Study(
        network=Network(base_channels=16, size=16, channel_mults=(1, 2), heads=2),
        frames=16,
        batch=2,
        steps=600,
        learning_rate=2e-3,
        seeds=3,
        held_out=48,
        samples=48,
        sample_steps=16,
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
