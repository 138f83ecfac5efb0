"""Calls of any size, option and memory layout, drawn by hypothesis: the same `Case` that the listed ones are."""

from __future__ import annotations

import math

import torch
from hypothesis import strategies as st

from . import cases
from .cases import Case

STRIDES = st.sampled_from((*cases.LAYOUTS, *cases.ODD_LAYOUTS)) | st.integers(0, 999).map(lambda n: f"random-{n}")
LANES = st.lists(st.integers(1, 7), max_size=3).map(tuple)


@st.composite
def scans(draw, dtypes: tuple[torch.dtype, ...] = cases.DTYPES, work: int = 20_000) -> Case:
    """`work` bounds batch * channels * states * length * lanes, and with it the time of the truth."""
    direction = draw(st.sampled_from(("both", "forward", "reverse")))
    forms = {name: draw(st.sampled_from(("shared", "groups", "constant"))) for name in ("B_form", "C_form")}
    groups = 2 if "groups" in forms.values() else 1
    sizes = {
        "batch": draw(st.integers(1, 3)),
        "channels": groups * draw(st.integers(1, 40 // groups)),
        "states": draw(st.integers(1, 20)),
        "lanes": draw(LANES),
    }
    rest = work // (sizes["batch"] * sizes["channels"] * sizes["states"] * math.prod(sizes["lanes"]))
    flags = {name: draw(st.booleans()) for name in ("D", "z", "bias", "softplus", "initial", "last")}
    return Case(
        direction=direction,
        merge=draw(st.sampled_from(cases.BOTH_MERGES)) if direction == "both" else "sum",
        length=draw(st.integers(1, min(max(rest, 1), 150))),
        B_b_form=draw(st.sampled_from((None, "shared", "constant"))),
        separate=draw(st.sampled_from(tuple(cases.SEPARATE))),
        dtype=draw(st.sampled_from(dtypes)),
        layout=draw(STRIDES),
        values=draw(st.sampled_from(("plain", "strong", "weak", "growing"))),
        seed=draw(st.integers(0, 999)),
        **sizes, **forms, **flags,
    )  # fmt: skip


SHAPES = st.tuples(st.integers(1, 3), st.integers(1, 40), st.integers(1, 70), LANES).filter(
    lambda shape: math.prod((*shape[:3], *shape[3])) <= 20_000
)
