"""What a network is made of, as frozen dataclasses. `dataclasses.asdict` takes them to JSON, `from_dict` back."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

from ssmvdm.fields import check_choice, check_positive, check_types, construct
from ssmvdm.temporal.registry import canonical_name, check_exists

ATTENTION_BACKENDS = ("einsum", "sdpa")
MEMORY_MODES = ("lean", "fast")
S4D_FORMS = ("scan", "fft")
MOST_LEVELS = 16  # a video has 2 ** 15 pixels to a side there
MOST_TIME_LINEARS = 16


@dataclass(frozen=True)
class TemporalConfig:
    """The layer that mixes information over time.

    layer: a name of `ssmvdm.temporal.available_temporal_layers()`; "attn" and "l-attn" are accepted as aliases.
    mixer: how a state-space layer is wrapped, "mamba" (the paper's choice), "mlp", "glu", "gss" or "glu-mlp" (its first
        version's); attention and "none" do not look at it. Their equations are in `ssmvdm.temporal.mixers`.
    heads, dim_head: attention and linear attention. A U-Net also takes the heads of its spatial attention from here.
    attention_backend: "sdpa" (torch's fused attention) or "einsum" (as published); same numbers to rounding.
    states: real states per channel of a state-space layer; S4D has half as many complex ones, so there it is even.
    linear_dim: hidden width of the mixers "mlp" and "glu-mlp", where None is four times the layer's width, and width
        of the gate of "gss", where None is three times; the others have none and do not look at it.
    memory: "lean" keeps the input and the first projection of a state-space layer for backward and recomputes the rest,
        "fast" keeps more. Same numbers. A U-Net also takes the mode of its other parts from here, unless told its own.
    s4d_form: "scan" (a recurrence) or "fft" (as published); same numbers to rounding. Only S4D looks at it.

    Raises ValueError naming the field, what was expected and what came.
    """

    layer: str = "bi-s6"
    mixer: str = "mamba"
    heads: int = 8
    dim_head: int = 64
    attention_backend: str = "sdpa"
    states: int = 16
    linear_dim: int | None = None
    memory: str = "lean"
    s4d_form: str = "scan"

    def __post_init__(self):
        check_types(self)
        object.__setattr__(self, "layer", canonical_name(self.layer))
        check_exists(self.layer, self.mixer)
        check_choice("attention_backend", self.attention_backend, ATTENTION_BACKENDS)
        check_choice("memory", self.memory, MEMORY_MODES)
        check_choice("s4d_form", self.s4d_form, S4D_FORMS)
        check_positive(self, "heads", "dim_head", "states", "linear_dim")
        if self.dim_head % 2:
            raise ValueError(f"dim_head must be even (rotary embedding turns pairs of features), got {self.dim_head}")
        if self.layer.endswith("s4d") and self.states % 2:
            raise ValueError(f"states must be even for {self.layer!r} (pairs of conjugate modes), got {self.states}")


@dataclass(frozen=True)
class UNet3DConfig:
    """The 3-D U-Net. Defaults are those of the paper's class, except the temporal layer, which is its recommendation.

    channels, out_channels: of the video; out_channels None means the same.
    base_channels, channel_mults: width of level i is base_channels * channel_mults[i]; every level but the last halves
        height and width.
    init_channels: width after the first convolution; None means base_channels. init_kernel: its (odd) spatial size.
    norm_groups: groups of every GroupNorm; must divide every width.
    time_linears: linear layers of the time embedding, at least 2 and at most 16, as there are levels at most.
    spatial_linear_attention: linear attention over pixels at every level (the middle always has full attention).
    spatial_heads: heads of both spatial attentions; None means temporal.heads. spatial_dim_head: features per head.
    cond_dim: width of a conditioning vector (a text embedding, say); None means unconditional.
    memory: "lean" keeps the inputs of blocks for backward and recomputes what is cheap, "fast" leaves it to autograd.
        Same numbers to rounding. It holds for the temporal layer too, whose own `memory` it becomes; None takes that.
    checkpoint_levels: keep only what enters each level and run the level's forward pass again in backward: a third of
        what "lean" alone keeps, for up to half as much time again.

    Raises ValueError naming the field, what was expected and what came.
    """

    channels: int = 3
    base_channels: int = 64
    channel_mults: tuple[int, ...] = (1, 2, 4, 8)
    temporal: TemporalConfig = field(default_factory=TemporalConfig)
    out_channels: int | None = None
    init_channels: int | None = None
    init_kernel: int = 7
    norm_groups: int = 8
    time_linears: int = 2
    spatial_linear_attention: bool = True
    spatial_heads: int | None = None
    spatial_dim_head: int = 32
    cond_dim: int | None = None
    memory: str | None = None
    checkpoint_levels: bool = False

    def __post_init__(self):
        check_types(self)
        if self.memory is None:
            object.__setattr__(self, "memory", self.temporal.memory)
        check_choice("memory", self.memory, MEMORY_MODES)
        object.__setattr__(self, "temporal", replace(self.temporal, memory=self.memory))
        object.__setattr__(self, "channel_mults", tuple(self.channel_mults))  # a list when it comes from JSON
        check_positive(self, "channels", "base_channels", "init_kernel", "norm_groups", "spatial_dim_head")
        check_positive(self, "out_channels", "init_channels", "spatial_heads", "cond_dim")
        if not 1 <= len(self.channel_mults) <= MOST_LEVELS or min(self.channel_mults) < 1:
            came = f"{self.channel_mults!r:.80}"
            raise ValueError(f"channel_mults must be 1 to {MOST_LEVELS} positive integers, got {came}")
        if self.base_channels < 4 or self.base_channels % 2:
            raise ValueError(f"base_channels must be even and at least 4 (time embedding), got {self.base_channels}")
        if self.init_kernel % 2 == 0:
            raise ValueError(f"init_kernel must be odd, got {self.init_kernel}")
        if not 2 <= self.time_linears <= MOST_TIME_LINEARS:
            raise ValueError(f"time_linears must be from 2 to {MOST_TIME_LINEARS}, got {self.time_linears}")
        for width in (self.base_channels, *self.widths):
            if width % self.norm_groups:
                raise ValueError(f"norm_groups={self.norm_groups} must divide every width, and {width} is one")

    @classmethod
    def from_dict(cls, values: Mapping) -> "UNet3DConfig":
        """The inverse of dataclasses.asdict, also after JSON. Raises ValueError naming a field that does not exist."""
        return construct(cls, values)

    @property
    def widths(self) -> tuple[int, ...]:
        """Width before level 0, then of each level."""
        return (self.init_channels or self.base_channels, *(self.base_channels * m for m in self.channel_mults))

    @property
    def time_dim(self) -> int:
        """Width of the time embedding."""
        return 32 * self.base_channels

    @property
    def frame_multiple(self) -> int:
        """Height and width of a video must be multiples of this."""
        return 2 ** (len(self.channel_mults) - 1)
