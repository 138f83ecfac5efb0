"""The layers that are compared, by name, and the shapes they are compared at. Importing this imports no torch.

A name is that of a layer in `ssmvdm.compared`, which is ours; one with ":fast" behind it is ours with memory "fast",
one with ":published" the same layer as the authors' code computes it. Two more are rivals of attention.
"""

from dataclasses import dataclass

from ssmvdm.compared import LAYERS, Layer, Network, all_layer_names, layer_named

PAPER = Network.paper()
BASE = "bi-s6"  # what times are compared with
MODES = ("inference", "training")
WIDTHS = tuple(PAPER.base_channels * mult for mult in PAPER.channel_mults)  # channels at each level


@dataclass(frozen=True)
class Candidate(Layer):
    """A layer with its weights (`temporal`) in one form of computing it: "lean", "fast", "published", "flex"."""

    form: str
    has_bias: bool = False  # whether it adds the relative position bias to its scores

    @property
    def weights(self) -> tuple:
        """What is equal for candidates that compute the same function of the same weights."""
        return self.temporal["layer"], self.temporal.get("mixer"), self.has_bias

    @property
    def is_published(self) -> bool:
        """Whether it computes in the way of the authors' code."""
        return self.form == "published" or self.temporal.get("attention_backend") == "einsum"


_SDPA: dict[str, str] = {"layer": "attention", "attention_backend": "sdpa"}
_ATTENTION = (
    Candidate("sdpa-rotary", "SDPA, rotary, no bias", _SDPA, ("#7F3FBF", "#B48CFF"), "D", "lean"),
    Candidate("flex-attention", "FlexAttention, rotary and bias", _SDPA, ("#C2185B", "#FF6FA8"), "^", "flex", True),
)
_FORMS = {"fast": ("memory “fast” (ours)", "D"), "published": ("as published", "s")}

QUICK = ("attention-einsum", "attention-sdpa", "linear-attention", "bi-s4d", "bi-s4d:published", BASE,
         f"{BASE}:published")  # fmt: skip
ALL = (
    "attention-einsum", "attention-sdpa", "sdpa-rotary", "flex-attention", "linear-attention", "s4d", "bi-s4d",
    "bi-s4d:published", "s6", BASE, f"{BASE}:fast", f"{BASE}:published",
)  # fmt: skip


def candidate_named(name: str) -> Candidate:
    """ValueError that says which names there are."""
    for candidate in _ATTENTION:
        if candidate.name == name:
            return candidate
    base, colon, form = name.partition(":")
    layer = _layer_of(name, base)
    is_attention = "attention" in layer.temporal["layer"]
    if not colon:
        return Candidate(**vars(layer), form="lean", has_bias=layer.temporal["layer"] == "attention")
    if form not in _FORMS or is_attention:
        raise ValueError(f"unknown layer {name!r}; expected {' or '.join(_FORMS)} behind the colon, and before it a "
                         "state-space layer")  # fmt: skip
    kind, _, mixer = base.partition("/")
    plain = next(layer for layer in LAYERS if layer.name == kind).label.partition(",")[0].removesuffix(" (ours)")
    suffix, marker = _FORMS[form]
    label = ", ".join(filter(None, [plain, f"{mixer} mixer" if mixer else "", suffix]))
    return Candidate(name, label, layer.temporal, layer.color, marker, form)


def _layer_of(name: str, base: str) -> Layer:
    try:
        return layer_named(base)
    except ValueError as error:
        known = (*all_layer_names(), *(candidate.name for candidate in _ATTENTION))
        forms = " or ".join(f":{form}" for form in _FORMS)
        raise ValueError(f"unknown layer {name!r}; expected one of {', '.join(known)}, or a state-space layer with "
                         f"{forms} behind it") from error  # fmt: skip


@dataclass(frozen=True)
class Shape:
    """Activations at a level of the paper's U-Net, the first being 1, for a clip of size x size pixels, batch 1."""

    level: int
    size: int
    frames: int

    @property
    def channels(self) -> int:
        return WIDTHS[self.level - 1]

    @property
    def side(self) -> int:
        """Height and width of the activations."""
        return self.size >> (self.level - 1)

    @property
    def place(self) -> str:
        return f"level {self.level} of {self.size}x{self.size}"
