"""What a training run is, as frozen dataclasses, and the runs that have a name: the paper's, and one for two cores."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from ssmvdm.config import TemporalConfig, UNet3DConfig
from ssmvdm.data.source import DataConfig
from ssmvdm.diffusion import LOSSES, GaussianDiffusion
from ssmvdm.fields import check_choice, check_positive, check_types, construct

PRECISIONS = ("fp32", "bf16", "fp16")
LARGEST_RATE = 3e37  # Adam's first step divides the learning rate by 1 - .9, and float32 ends at 3.4e38


@dataclass(frozen=True)
class DiffusionConfig:
    """The diffusion process. timesteps: T. loss: "l2" or "l1", of the predicted noise.

    Raises ValueError naming the field, what was expected and what came.
    """

    timesteps: int = 256
    loss: str = "l2"

    def __post_init__(self):
        check_types(self)
        check_positive(self, "timesteps")
        check_choice("loss", self.loss, tuple(LOSSES))

    def process(self, dynamic_threshold: float | None = None) -> GaussianDiffusion:
        """The process itself; dynamic_threshold is a matter of sampling."""
        return GaussianDiffusion(self.timesteps, self.loss, dynamic_threshold)


@dataclass(frozen=True)
class TrainingConfig:
    """A run: together with the number of processes it determines every weight at every step.

    Raises ValueError naming the field, what was expected and what came.
    """

    network: UNet3DConfig = field(default_factory=UNet3DConfig)

    diffusion: DiffusionConfig = field(default_factory=DiffusionConfig)

    data: DataConfig = field(default_factory=DataConfig)

    seed: int = 0
    """Of the initial weights and of everything that is drawn."""

    steps: int = 100_000
    """Optimizer steps of the whole run."""

    batch: int = 1
    """Clips per process and pass."""

    accumulate: int = 1
    """Passes per optimizer step; a step sees batch * accumulate * processes clips."""

    learning_rate: float = 1e-4
    """Of Adam with betas (.9, .999), constant."""

    clip_norm: float | None = None
    """Largest norm of the whole gradient; None never clips."""

    ema_decay: float = 0.9999
    """Of the averaged weights, which samples are made with."""

    cond_drop: float = 0.1
    """Of a network with a condition: share of the clips that it learns from without one, for guidance."""

    focus_present: float = 0.0
    """Of a network with temporal attention: share of the clips whose frames attend only to themselves, from which it
    learns as from single images (Ho et al. 2022, arXiv 2204.03458)."""

    precision: str = "fp32"
    """fp32; or bf16 or fp16 for mixed precision: weights, averages and moments stay float32."""

    compile: bool = False
    """Run the network through torch.compile."""

    sharded: bool = False
    """Each process holds a part of the parameters, gradients, moments and averages (FSDP2), for networks that do not
    fit one GPU; needs several processes with a GPU each."""

    workers: int = 0
    """Processes that load clips ahead, per training process; 0 loads them in between."""

    log_every: int = 1
    """Steps from one line of the log to the next."""

    checkpoint_every: int = 1000
    """Steps from one checkpoint to the next. The last step always has one."""

    sample_every: int = 1000
    """Steps from one sheet of samples to the next, the last step has one too; 0 never samples."""

    keep: int = 2
    """Newest checkpoints that stay on disk."""

    samples: int = 4
    """Clips on a sheet of samples."""

    sample_steps: int = 50
    """Steps of DDIM that they are made in."""

    def __post_init__(self):
        check_types(self)
        check_positive(self, "steps", "batch", "accumulate", "log_every", "checkpoint_every", "keep", "samples")
        check_positive(self, "sample_steps")
        for name in ("seed", "workers", "sample_every"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must be a whole number of at least 0, got {getattr(self, name)}")
        _check_number("learning_rate", self.learning_rate, 0.0, LARGEST_RATE)
        if self.clip_norm is not None:
            _check_number("clip_norm", self.clip_norm, 0.0, math.inf)
        if self.ema_decay != 0:
            _check_number("ema_decay", self.ema_decay, 0.0, 1.0)
        for name in ("cond_drop", "focus_present"):
            if getattr(self, name) not in (0, 1):
                _check_number(name, getattr(self, name), 0.0, 1.0)
        if self.focus_present and self.network.temporal.layer != "attention":
            came = f"{self.focus_present!r} and {self.network.temporal.layer!r}"
            raise ValueError(f"focus_present: needs network.temporal.layer 'attention', got {came}")
        check_choice("precision", self.precision, PRECISIONS)
        if self.sharded and (self.compile or self.precision != "fp32"):
            came = f"compile {self.compile} and precision {self.precision}"
            raise ValueError(f"sharded: needs compile False and precision fp32, got {came}")
        if self.network.cond_dim is None and self.data.embeddings is not None:
            raise ValueError("data.embeddings: needs a network with cond_dim, this one has none")
        multiple = self.network.frame_multiple
        if self.data.size % multiple:
            raise ValueError(f"data.size must be a multiple of {multiple} for this network, got {self.data.size}")

    def to_dict(self) -> dict:
        """Plain values that JSON can hold; `from_dict` is the inverse."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping) -> "TrainingConfig":
        """The inverse of to_dict, also after JSON. A field that is left out has its default.

        Raises ValueError naming a field that does not exist or cannot have its value.
        """
        return construct(cls, values)


def _check_number(name: str, value: float, above: float, below: float) -> None:
    if not above < value < below:
        raise ValueError(f"{name} must be a number above {above:g} and below {below:g}, got {value!r}")


def _paper(data: str, layer: str = "bi-s6") -> TrainingConfig:
    """A run of the paper's current version. 8 processes make a step of 8 clips."""
    network = UNet3DConfig(base_channels=112, temporal=TemporalConfig(layer=layer, heads=14))
    return TrainingConfig(network=network, data=DataConfig(data, frames=256, size=32))


def _first_version(data: str, frames: int, size: int = 32, timesteps: int = 256, **others) -> TrainingConfig:
    """A run of the paper's first version. Its batch and its number of steps are not known to us: those of the current
    one stand in."""
    layer = TemporalConfig(layer="bi-s4d", mixer="glu-mlp", heads=8, states=512, linear_dim=512)
    diffusion, clips = DiffusionConfig(timesteps), DataConfig(data, frames=frames, size=size)
    return TrainingConfig(
        network=UNet3DConfig(temporal=layer), diffusion=diffusion, data=clips, ema_decay=0.995, **others
    )


_DEMO = TrainingConfig(
    network=UNet3DConfig(base_channels=16, channel_mults=(1, 2), temporal=TemporalConfig(heads=2)),
    data=DataConfig("maze", frames=16, size=16),
    steps=680,
    batch=4,
    learning_rate=3e-3,
    clip_norm=1.0,
    ema_decay=0.99,
    checkpoint_every=170,
    sample_every=680,
)

# Of data sets on disk the place is the user's to say: --data.path. The paper merged training and test videos, which is
# --data.merge-splits.
PRESETS = {
    "cpu-demo": _DEMO,
    "paper-maze-256": _paper("maze"),
    "paper-maze-256-attention": _paper("maze", "attention"),
    "paper-maze-256-bi-s4d": _paper("maze", "bi-s4d"),
    "paper-minerl-256": _paper("minerl"),
    "paper-gqn-256": _paper("gqn-mazes"),
    "paper-carla-256": _paper("carla"),
    "paper-ucf101-16": _first_version("ucf101", 16, learning_rate=3e-4),
    "paper-ucf101-16-64px": _first_version("ucf101", 16, size=64, timesteps=1000),
    "paper-minerl-64": _first_version("minerl", 64),
    "paper-minerl-150": _first_version("minerl", 150),
    "paper-minerl-200": _first_version("minerl", 200),
    "paper-minerl-400": _first_version("minerl", 400),
}
