"""The layers that are compared are those of the package's registry, told apart in plots and on pages."""

import pytest

from ssmvdm import TemporalConfig
from ssmvdm.compared import LAYER_NAMES, LAYERS, PUBLISHED, all_layer_names, layer_named
from ssmvdm.report.page import MARKS
from ssmvdm.temporal import available_temporal_layers


def registry_name(config: TemporalConfig) -> str:
    return config.layer if config.layer.endswith("attention") else f"{config.layer}/{config.mixer}"


def test_every_layer_of_the_registry_can_be_measured():
    measured = {registry_name(TemporalConfig(**layer_named(name).temporal)) for name in all_layer_names()}
    assert measured == set(available_temporal_layers()) - {"none"}
    assert len(set(all_layer_names())) == len(all_layer_names())


def test_the_default_comparison_is_that_of_the_paper():
    """Attention in both forms, linear attention, and every state-space layer under the paper's mixer."""
    assert LAYER_NAMES == ("attention-einsum", "attention-sdpa", "linear-attention", "s4d", "bi-s4d", "s6", "bi-s6")
    assert all(layer_named(p.layer).name == p.layer for p in PUBLISHED)


def test_layers_look_different_and_have_a_mark_on_the_page():
    for appearance in range(2):
        assert len({layer.color[appearance] for layer in LAYERS}) == len(LAYERS)
    assert len({layer.marker for layer in LAYERS}) == len(LAYERS)
    looks = [(layer_named(name).color, layer_named(name).marker) for name in all_layer_names()]
    assert len(set(looks)) == len(looks)
    assert {marker for _, marker in looks} == set(MARKS)


@pytest.mark.parametrize(("color", "ground"), [(0, "#ffffff"), (1, "#12161d")])
def test_colors_stand_out_from_the_ground(color, ground):
    """A contrast of 3 to 1, what WCAG 2.1 (1.4.11) asks of graphics."""

    def luminance(code):
        channels = (int(code[i : i + 2], 16) / 255 for i in (1, 3, 5))
        linear = (c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in channels)
        return sum(weight * c for weight, c in zip((0.2126, 0.7152, 0.0722), linear, strict=True))

    for layer in LAYERS:
        light, dark = sorted((luminance(layer.color[color]), luminance(ground)), reverse=True)
        assert (light + 0.05) / (dark + 0.05) >= 3, layer.name


def test_an_ablation_says_what_it_is():
    layer = layer_named("bi-s6/gss")
    assert layer.temporal == {"layer": "bi-s6", "mixer": "gss"}
    assert layer.label == "bi-S6, gss mixer (ours)"
    with pytest.raises(ValueError, match=r"'bi-s6/mamba'; expected one of attention-einsum, .*bi-s4d/gss"):
        layer_named("bi-s6/mamba")
