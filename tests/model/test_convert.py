"""To and from the authors' names: nothing lost, nothing ignored, everything wrong named."""

import pytest
import torch

from ssmvdm import convert

from . import paper

SMALL = {"dim": 8, "dim_mults": (1, 2), "attn_heads": 2, "attn_dim_head": 8}
BIAS_TABLE = "time_rel_pos_bias.relative_attention_bias.weight"


@pytest.mark.parametrize("name", ["unet_attn", "unet_bi-s6_v20"])
def test_round_trip_is_exact(name):
    truth = paper.load(name)
    back = convert.unet_to_paper(convert.unet_from_paper(truth.config, truth.state_dict))
    assert set(back) == set(truth.state_dict)
    for key, tensor in truth.state_dict.items():
        if key == BIAS_TABLE and "s6" in name:
            assert not back[key].any() and back[key].shape == tensor.shape
        else:
            assert torch.equal(back[key], tensor), key


@pytest.mark.parametrize("arch", ["attn", "l-attn", "bi-s6"])
def test_every_option_survives_a_round_trip(arch):
    config = SMALL | {
        "temporal_arch": arch, "ssm_version": 20, "ssm_hidden_dim": 4, "ssm_linear_dim": None, "cond_dim": 5,
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


def test_text_condition_has_the_width_of_their_text_model():
    assert convert.unet_from_paper(SMALL | {"use_bert_text_cond": True}).config.cond_dim == convert.BERT_DIM


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
        ({"temporal_arch": "lstm"}, "no temporal layer 'lstm'; there are: attention"),
    ],
)
def test_configuration_errors(change, message):
    with pytest.raises(ValueError, match=message):
        convert.unet_from_paper(SMALL | change)
    with pytest.raises(ValueError, match="'dim'"):
        convert.unet_from_paper({"dim_mults": (1, 2)})


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
    assert type(convert.temporal_layer_from_paper("s6", config | {"bidirectional": True})).__name__ == "BidirectionalS6"
    with pytest.raises(ValueError, match="bidirectional"):
        convert.temporal_layer_from_paper("bi-s6", config | {"bidirectional": False})
    with pytest.raises(ValueError, match="'version'"):
        convert.temporal_layer_from_paper("bi-s6", {"dim": 6, "hidden_dim": 4})
    with pytest.raises(ValueError, match="'dim'"):
        convert.temporal_layer_from_paper("attn", {"heads": 2})
    with pytest.raises(ValueError, match="'size'"):
        convert.temporal_layer_from_paper("attn", {"dim": 6, "size": 2})
