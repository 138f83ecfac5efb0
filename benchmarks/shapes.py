"""What is measured: the temporal layers that are compared, frame counts and the two networks."""

from dataclasses import asdict, dataclass

GIB = 2**30
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
        ("#B8860B", "#F0C000"),
        "D",
    ),
    Layer("linear-attention", "linear attention", {"layer": "linear-attention"}, ("#0072B2", "#56B4E9"), "^"),
    Layer("bi-s6", "bi-S6, fused scan (ours)", {"layer": "bi-s6", "mixer": "mamba"}, ("#007A5A", "#2BD4A4"), "o"),
)
LAYER_NAMES = tuple(layer.name for layer in LAYERS)


def layer_named(name: str) -> Layer:
    """The layer of that name; ValueError listing the names there are."""
    for layer in LAYERS:
        if layer.name == name:
            return layer
    raise ValueError(f"unknown layer {name!r}; expected one of {', '.join(LAYER_NAMES)}")


@dataclass(frozen=True)
class Published:
    """Bytes saved for backward by the authors' own code at the paper's setting, measured once on the meta device."""

    label: str
    layer: str  # of ours that it is the counterpart of
    saved_gib: dict[int, float]  # frames -> GiB


PUBLISHED = (
    Published("attention, the authors' code", "attention-einsum", {16: 1.91, 64: 8.83, 256: 54.61}),
    Published("linear attention, the authors' code", "linear-attention", {64: 8.82, 256: 32.87}),
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
        for name, value in (("base channels", base_channels), ("size", size)):
            if value < 8 or value % 8:
                raise ValueError(f"{name}: expected a multiple of 8, at least 8, got {value}")
        return Network(base_channels, size, heads=base_channels // 8)

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
