"""To and from the authors' names: nothing lost, nothing ignored, everything wrong named."""

from dataclasses import replace

import pytest
import torch

from ssmvdm import TemporalConfig, UNet3D, UNet3DConfig, convert

from . import paper

SMALL = {"dim": 8, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 8}
BIAS_TABLE = "time_rel_pos_bias.relative_attention_bias.weight"


@pytest.mark.parametrize("name", paper.UNETS)
def test_round_trip_is_exact(name):
    truth = paper.load(name)
    back = convert.unet_to_paper(convert.unet_from_paper(truth.config, truth.state_dict))
    assert set(back) == set(truth.state_dict)
    for key, tensor in truth.state_dict.items():
        if key == BIAS_TABLE and name != "unet_attn":
            assert not back[key].any() and back[key].shape == tensor.shape
        else:
            assert torch.equal(back[key], tensor), key


@pytest.mark.parametrize("name", paper.LAYERS)
def test_round_trip_of_a_layer_is_exact(name):
    truth = paper.load(name)
    layer = convert.temporal_layer_from_paper(paper.architecture(name), truth.config, truth.state_dict)
    back = convert.temporal_layer_to_paper(layer)
    assert set(back) == set(truth.state_dict)
    assert all(torch.equal(back[key], tensor) for key, tensor in truth.state_dict.items())


SSM = [(arch, version) for arch in ("s4d", "bi-s4d", "s6", "bi-s6") for version in (1, 2, 10, 20, "glu-mlp")]


@pytest.mark.parametrize(("arch", "version"), [("attn", None), ("l-attn", None), *SSM])
def test_every_option_survives_a_round_trip(arch, version):
    config = SMALL | {
        "temporal_arch": arch, "ssm_version": version, "ssm_hidden_dim": 4, "ssm_linear_dim": 12, "cond_dim": 5,
        "out_dim": 2, "channels": 1, "timeemb_linears": 4, "init_kernel_size": 3, "use_sparse_linear_attn": False,
        "resnet_groups": 4, "init_dim": None, "block_type": "resnet",
    }  # fmt: skip
    model = convert.unet_from_paper(config)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    theirs = convert.unet_to_paper(model)
    assert {"null_cond_emb", "time_mlp.7.weight"} <= set(theirs)
    again = convert.unet_from_paper(config, theirs)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters(), strict=True))


# What a bidirectional layer of 24 channels, 16 states and linear_dim 40 stores, apart from the sequence maps.
OTHER_SHAPES = {
    1: {"fc1.weight": (40, 48), "fc1.bias": (40,), "fc2.weight": (24, 40), "fc2.bias": (24,)},
    2: {},
    "glu-mlp": {"fc1.weight": (40, 24), "fc1.bias": (40,), "fc2.weight": (24, 40), "fc2.bias": (24,)},
    10: {
        **{f"{name}.weight": (24, 24) for name in ("fc1", "fc2", "fc_rev1", "fc_rev2")},
        **{f"{name}.bias": (24,) for name in ("fc1", "fc2", "fc_rev1", "fc_rev2", "fc_out")},
        "fc_out.weight": (24, "gate"),
        **{f"{name}.weight": ("gate", 24) for name in ("fc3", "fc_shortcut")},
        **{f"{name}.bias": ("gate",) for name in ("fc3", "fc_shortcut")},
    },
    20: {
        "fc_init.weight": (96, 24), "fc_init.bias": (96,), "fc_out.weight": (24, 48), "fc_out.bias": (24,),
        **{f"conv{way}.weight": (48, 1, 4) for way in ("", "_rev")},
        **{f"conv{way}.bias": (48,) for way in ("", "_rev")},
    },
}  # fmt: skip


def core_shapes(core: str, version) -> dict[str, tuple[int, ...]]:
    width = 48 if version == 20 else 24
    if core.startswith("s4d"):
        shapes = {"D": (width,), "kernel.log_dt": (width,), "kernel.C": (width, 8, 2)}
        shapes |= {"kernel.log_A_real": (width, 8), "kernel.A_imag": (width, 8)}
    else:
        rank = 3 if version == 20 else 2
        shapes = {"D": (width,), "A_log": (width, 16), "x_proj.weight": (rank + 32, width)}
        shapes |= {"dt_proj.weight": (width, rank), "dt_proj.bias": (width,)}
    if version in (2, "glu-mlp"):
        shapes |= {"output_linear.0.weight": (48, 24, 1), "output_linear.0.bias": (48,)}
    return {f"{core}.{name}": shape for name, shape in shapes.items()}


@pytest.mark.parametrize(("arch", "version"), SSM)
def test_names_and_shapes_of_their_layers(arch, version):
    """Spelled out once more, for those that no file with their numbers stands for."""
    core, is_both = arch.removeprefix("bi-"), arch.startswith("bi-")
    gate = 72 if core == "s4d" else 40
    expected = {
        name: tuple(gate if size == "gate" else size for size in shape)
        for name, shape in OTHER_SHAPES[version].items() if is_both or "_rev" not in name
    }  # fmt: skip
    expected |= core_shapes(core, version)
    if is_both:
        expected |= core_shapes(f"{core}_rev", version)
    elif version == 1:
        expected["fc1.weight"] = (40, 24)
    config = {"dim": 24, "hidden_dim": 16, "linear_dim": 40, "version": version, "bidirectional": is_both}
    theirs = convert.temporal_layer_to_paper(convert.temporal_layer_from_paper(core, config))
    assert {name: tuple(tensor.shape) for name, tensor in theirs.items()} == expected


def test_text_condition_has_the_width_of_their_text_model():
    assert convert.unet_from_paper(SMALL | {"use_bert_text_cond": True}).config.cond_dim == convert.BERT_DIM


def test_heads_in_space_and_in_time():
    """Their networks have one number for both; where nothing attends in time, that of the spatial attention."""
    config = UNet3DConfig(base_channels=8, channel_mults=(1, 2), spatial_heads=2,
                          temporal=TemporalConfig(layer="bi-s6", heads=4, dim_head=8, states=4))  # fmt: skip
    theirs = {"dim": 8, "dim_mults": (1, 2), "attn_heads": 2, "temporal_arch": "bi-s6", "ssm_version": 20,
              "ssm_hidden_dim": 4}  # fmt: skip
    model = UNet3D(config)
    back = convert.unet_from_paper(theirs, convert.unet_to_paper(model)).state_dict()
    assert all(torch.equal(value, back[name]) for name, value in model.state_dict().items())
    attention = UNet3D(replace(config, temporal=TemporalConfig(layer="attention", heads=4, dim_head=8)))
    with pytest.raises(ValueError, match="as many heads in space as in time, not 2 and 4"):
        convert.unet_to_paper(attention)


def test_meta_device():
    truth = paper.load("unet_bi-s6_v20")
    with torch.device("meta"):
        fresh = convert.unet_from_paper(truth.config)
        loaded = convert.unet_from_paper(truth.config, truth.state_dict)
    assert all(p.is_meta for model in (fresh, loaded) for p in model.parameters())
    assert {k: v.shape for k, v in convert.unet_to_paper(fresh).items()} == {
        k: v.shape for k, v in truth.state_dict.items()
    }


@pytest.mark.parametrize("change", ["extra", "missing", "shape", "frequencies"])
def test_state_dict_errors_name_the_key(change):
    truth = paper.load("unet_attn")
    state_dict = dict(truth.state_dict)
    key = "downs.0.3.fn.fn.fn.rotary_emb.freqs" if change == "frequencies" else "mid_block1.mlp.1.weight"
    if change == "extra":
        key = "downs.9.0.block1.proj.weight"
        state_dict[key] = torch.zeros(1)
    elif change == "missing":
        del state_dict[key]
    elif change == "shape":
        state_dict[key] = state_dict[key][:-1]
    else:
        state_dict[key] = state_dict[key] * 1.01
    with pytest.raises(ValueError, match=key.replace(".", r"\.")):
        convert.unet_from_paper(truth.config, state_dict)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"dimm": 8}, "'dimm'"),
        ({"block_type": "convnext"}, "block_type"),
        ({"temporal_arch": "bi-s6"}, "ssm_version"),
        ({"temporal_arch": "bi-s6", "ssm_version": 3}, "ssm_version must be one of 1, 2, 10, 20, got 3"),
        ({"temporal_arch": "s4d", "ssm_version": "vim"}, "got 'vim'; or a mixer of mlp, glu, glu-mlp, gss, mamba"),
        ({"temporal_arch": "lstm"}, "no temporal layer 'lstm'; there are: attention"),
    ],
)
def test_configuration_errors(change, message):
    with pytest.raises(ValueError, match=message):
        convert.unet_from_paper(SMALL | change)
    with pytest.raises(ValueError, match="'dim'"):
        convert.unet_from_paper({"dim_mults": (1, 2)})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensor: tensor + 1j, "must be a floating-point tensor, got torch.complex64"),
        (lambda tensor: tensor.long(), "must be a floating-point tensor, got torch.int64"),
        (lambda tensor: tensor.tolist(), "must be a floating-point tensor, got list"),
        (lambda tensor: tensor.to("meta"), "must have values, got a tensor on the meta device"),
    ],
)
def test_weights_are_floating_point_and_have_values(change, message):
    config = {"dim": 6, "hidden_dim": 4, "version": 20}
    weights = convert.temporal_layer_to_paper(convert.temporal_layer_from_paper("bi-s6", config))
    weights["s6.D"] = change(weights["s6.D"].detach())
    with pytest.raises(ValueError, match=f"'s6.D' {message}"):
        convert.temporal_layer_from_paper("bi-s6", config, weights)


@pytest.mark.parametrize("arch", ["attn", "l-attn"])
def test_attention_layer_without_rotary_frequencies_does_not_rotate(arch):
    config = {"dim": 6, "heads": 2, "dim_head": 4}
    layer = convert.temporal_layer_from_paper(arch, config)
    assert layer.rotary
    weights = {name: parameter.detach().clone() for name, parameter in layer.named_parameters()}
    assert not convert.temporal_layer_from_paper(arch, config, weights).rotary
    weights["rotary_emb.freqs"] = torch.tensor([1.0, 0.01])
    assert convert.temporal_layer_from_paper(arch, config, weights).rotary


def test_layer_arguments():
    config = {"dim": 6, "hidden_dim": 4, "linear_dim": None, "version": 20}
    for arch, flag, is_both in (("s6", True, True), ("s6", False, False), ("s6", None, False), ("bi-s6", True, True)):
        given = config if flag is None else config | {"bidirectional": flag}
        names = convert.temporal_layer_to_paper(convert.temporal_layer_from_paper(arch, given))
        assert ("s6_rev.D" in names) == is_both
    with pytest.raises(ValueError, match="bidirectional"):
        convert.temporal_layer_from_paper("bi-s6", config | {"bidirectional": False})
    with pytest.raises(ValueError, match="'version'"):
        convert.temporal_layer_from_paper("bi-s6", {"dim": 6, "hidden_dim": 4})
    with pytest.raises(ValueError, match="'dim'"):
        convert.temporal_layer_from_paper("attn", {"heads": 2})
    with pytest.raises(ValueError, match="'size'"):
        convert.temporal_layer_from_paper("attn", {"dim": 6, "size": 2})
