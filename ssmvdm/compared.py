"""What is compared, in benchmarks and in the small reproduction: temporal layers, frame counts and networks."""

from dataclasses import asdict, dataclass, replace

FRAMES = (16, 32, 64, 128, 256)
PAPER_SIZE = 32  # pixels
PAPER_NETWORK = {"base_channels": 112, "channel_mults": (1, 2, 4, 8)}
PAPER_TEMPORAL = {"heads": 14, "dim_head": 64, "states": 16}


@dataclass(frozen=True)
class Layer:
    """A temporal layer as it is compared. name: on the command line and in files; label: for people; temporal: the
    fields of `ssmvdm.TemporalConfig` that make it; color: on light and on dark ground (Okabe and Ito's palette, told
    apart by every kind of colour vision); marker: matplotlib's."""

    name: str
    label: str
    temporal: dict[str, str]
    color: tuple[str, str]
    marker: str


def _state_space(name: str, label: str, color: tuple[str, str], marker: str) -> Layer:
    """A state-space layer under the mixer of the paper's current version."""
    return Layer(name, label, {"layer": name, "mixer": "mamba"}, color, marker)


LAYERS = (
    Layer(
        "attention-einsum",
        "attention, einsum (as published)",
        {"layer": "attention", "attention_backend": "einsum"},
        ("#D55E00", "#FF8A3D"),
        "s",
    ),
    Layer(
        "attention-sdpa",
        "attention, SDPA",
        {"layer": "attention", "attention_backend": "sdpa"},
        ("#B8860B", "#E69F00"),
        "D",
    ),
    Layer("linear-attention", "linear attention", {"layer": "linear-attention"}, ("#0072B2", "#56B4E9"), "^"),
    _state_space("s4d", "S4D, causal (ours)", ("#857A00", "#F0E442"), "v"),
    _state_space("bi-s4d", "bi-S4D (ours)", ("#B0568A", "#CC79A7"), "P"),
    _state_space("s6", "S6, causal (ours)", ("#000000", "#FFFFFF"), "X"),
    _state_space("bi-s6", "bi-S6, fused scan (ours)", ("#007A5A", "#2BD4A4"), "o"),
)
LAYER_NAMES = tuple(layer.name for layer in LAYERS)


MIXER_MARKERS = {"mlp": "<", "glu": ">", "glu-mlp": "p", "gss": "h"}


def layer_named(name: str) -> Layer:
    """The layer of that name, or any other of the package's registry as "layer/mixer", which has the color of the layer
    and a marker for the mixer; ValueError listing the names there are."""
    for layer in LAYERS:
        if layer.name == name:
            return layer
    return _ablation(name)


def all_layer_names() -> tuple[str, ...]:
    """LAYER_NAMES, then the state-space layers under the other mixers."""
    from ssmvdm.temporal import available_temporal_layers

    mixed = (name for name in available_temporal_layers() if name.partition("/")[2] in MIXER_MARKERS)
    return (*LAYER_NAMES, *mixed)


def _ablation(name: str) -> Layer:
    if name not in all_layer_names():
        raise ValueError(f"unknown layer {name!r}; expected one of {', '.join(all_layer_names())}")
    kind, _, mixer = name.partition("/")
    base = layer_named(kind)
    label = f"{base.label.partition(',')[0].removesuffix(' (ours)')}, {mixer} mixer (ours)"
    return Layer(name, label, {"layer": kind, "mixer": mixer}, base.color, MIXER_MARKERS[mixer])


@dataclass(frozen=True)
class Published:
    """Bytes saved for backward by the authors' own code at the paper's setting, measured once on the meta device."""

    label: str
    layer: str  # of ours that it is the counterpart of
    saved_gib: dict[int, float]  # frames -> GiB


PUBLISHED = (
    Published("attention, the authors' code", "attention-einsum", {16: 1.91, 64: 8.83, 256: 54.61}),
    Published("linear attention, the authors' code", "linear-attention", {64: 8.82, 256: 32.87}),
    Published("bi-S4D, the authors' code", "bi-s4d", {64: 8.96, 256: 35.73}),
    Published("bi-S6 with mamba-ssm's op, the authors' code", "bi-s6", {16: 2.27, 64: 8.30, 256: 32.38}),
)


@dataclass(frozen=True)
class Network:
    """The network of a measurement, in numbers that go to JSON. Widths of attention keep the paper's proportion of
    eight times the base width (14 heads of 64 at 112 channels)."""

    base_channels: int
    size: int  # pixels
    channel_mults: tuple[int, ...] = (1, 2, 4, 8)
    heads: int = 1
    dim_head: int = 64
    states: int = 16
    memory: str = "lean"  # of `ssmvdm.UNet3DConfig`

    @staticmethod
    def small(base_channels: int, size: int) -> "Network":
        """ValueError unless base_channels is a positive multiple of 8 and size one of the U-Net's stride, 8 pixels."""
        _check_multiple_of_8("size", size)
        return Network(base_channels, size).of_width(base_channels)

    def of_width(self, base_channels: int) -> "Network":
        """The same with another base width; ValueError unless that is a positive multiple of 8."""
        _check_multiple_of_8("base channels", base_channels)
        return replace(self, base_channels=base_channels, heads=base_channels // 8)

    @staticmethod
    def paper() -> "Network":
        """The paper's full setting, 172-175 M parameters."""
        return Network(size=PAPER_SIZE, **PAPER_NETWORK, **PAPER_TEMPORAL)

    def build(self, layer: Layer):
        """A fresh `ssmvdm.UNet3D` with this temporal layer, on torch's default device."""
        from ssmvdm import TemporalConfig, UNet3D, UNet3DConfig

        temporal = TemporalConfig(heads=self.heads, dim_head=self.dim_head, states=self.states, **layer.temporal)
        config = UNet3DConfig(
            channels=3,
            base_channels=self.base_channels,
            channel_mults=tuple(self.channel_mults),
            temporal=temporal,
            memory=self.memory,
        )
        return UNet3D(config)

    def as_json(self) -> dict:
        return asdict(self)


def _check_multiple_of_8(name: str, value: int) -> None:
    if value < 8 or value % 8:
        raise ValueError(f"{name}: expected a multiple of 8, at least 8, got {value}")
