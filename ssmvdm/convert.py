"""To and from the authors' checkpoints: their keyword arguments, their parameter names.

One table per module kind says what a parameter of ours is called there; both directions read it. Loading is strict:
every key of theirs is used or is an error that names it, and so is every parameter of ours without one.
"""

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from ssmvdm.blocks import PreNormResidual, ResBlock, SpatialLinearAttention, TimeEmbedding
from ssmvdm.config import TemporalConfig, UNet3DConfig
from ssmvdm.temporal import build_temporal_layer
from ssmvdm.temporal.attention import TemporalAttention
from ssmvdm.temporal.linear_attention import TemporalLinearAttention
from ssmvdm.temporal.mixers import (
    MIXERS,
    GatedConvMixer,
    GluMixer,
    GluMlpMixer,
    GssMixer,
    Mixer,
    MlpMixer,
    StateSpaceLayer,
)
from ssmvdm.temporal.position import RelativePositionBias, rotary_dim, rotary_frequencies
from ssmvdm.temporal.s4d import S4DDirection
from ssmvdm.temporal.s6 import S6
from ssmvdm.unet3d import Level, UNet3D
from ssmvdm_kernels import BidirectionalMamba
from ssmvdm_kernels.modules import MambaMixer, S6Parameters

MIXER_OF_VERSION = {1: "mlp", 2: "glu", 10: "gss", 20: "mamba"}
BERT_DIM = 768  # width of the text embedding behind their use_bert_text_cond

# Their U-Net's keyword arguments that only have another name here, as (theirs, ours).
_UNET_ARGUMENTS = {
    "dim": "base_channels",
    "dim_mults": "channel_mults",
    "channels": "channels",
    "out_dim": "out_channels",
    "init_dim": "init_channels",
    "init_kernel_size": "init_kernel",
    "resnet_groups": "norm_groups",
    "timeemb_linears": "time_linears",
    "use_sparse_linear_attn": "spatial_linear_attention",
    "cond_dim": "cond_dim",
}
_TEMPORAL_ARGUMENTS = {"attn_heads": "heads", "attn_dim_head": "dim_head"}
_LAYER_ARGUMENTS = {"heads": "heads", "dim_head": "dim_head", **_TEMPORAL_ARGUMENTS}

# Parameters of a module, ours -> theirs; a name ending in a dot renames a child module.
_RES_BLOCK = {
    "embed.": "mlp.1.",
    "conv1.": "block1.proj.",
    "norm1.": "block1.norm.",
    "conv2.": "block2.proj.",
    "norm2.": "block2.norm.",
    "shortcut.": "res_conv.",
}
_LEVEL = {"block1.": "0.", "block2.": "1.", "spatial.": "2.", "temporal.": "3.", "resample.": "4."}
_UNET = {
    "time_embedding.": "time_mlp.",
    "null_condition": "null_cond_emb",
    "position_bias.": "time_rel_pos_bias.",
    "input_conv.": "init_conv.",
    "input_temporal.": "init_temporal_layer.",
    "down.": "downs.",
    "middle_block1.": "mid_block1.",
    "middle_spatial.": "mid_spatial_attn.",
    "middle_temporal.": "mid_temporal_layer.",
    "middle_block2.": "mid_block2.",
    "up.": "ups.",
    "output_block.": "final_conv.0.",
    "output_conv.": "final_conv.1.",
}
_MAMBA = {
    "in_proj.": "fc_init.",
    "out_proj.": "fc_out.",
    **{
        f"{ours}.{parameter}": theirs
        for ours, suffix in (("causal", ""), ("anticausal", "_rev"))
        for parameter, theirs in {
            "conv_weight": f"conv{suffix}.weight",
            "conv_bias": f"conv{suffix}.bias",
            "x_proj.": f"s6{suffix}.x_proj.",
            "dt_proj.": f"s6{suffix}.dt_proj.",
            "dt_bias": f"s6{suffix}.dt_proj.bias",
            "A_log": f"s6{suffix}.A_log",
            "D": f"s6{suffix}.D",
        }.items()
    },
}
# {core} stands for their name of the sequence map, "s6" or "s4d".
_CORE = {"core.causal.": "{core}.", "core.anticausal.": "{core}_rev."}
_GLU = {"causal_out.": "{core}.output_linear.0.", "anticausal_out.": "{core}_rev.output_linear.0.", **_CORE}
_NAMES = {
    UNet3D: _UNET,
    Level: _LEVEL,
    ResBlock: _RES_BLOCK,
    RelativePositionBias: {"table.": "relative_attention_bias."},
    StateSpaceLayer: {"mixer.": ""},
    BidirectionalMamba: _MAMBA,
    MambaMixer: _MAMBA,
    MlpMixer: _CORE,
    GluMixer: _GLU,
    GluMlpMixer: _GLU,
    GssMixer: {
        "shortcut.": "fc_shortcut.",
        "causal_in.": "fc1.",
        "causal_out.": "fc2.",
        "anticausal_in.": "fc_rev1.",
        "anticausal_out.": "fc_rev2.",
        "product_proj.": "fc3.",
        "out_proj.": "fc_out.",
        **_CORE,
    },
    GatedConvMixer: {
        "in_proj.": "fc_init.",
        "out_proj.": "fc_out.",
        "causal_conv.": "conv.",
        "anticausal_conv.": "conv_rev.",
        **_CORE,
    },
    S6Parameters: {"dt_bias": "dt_proj.bias"},
    S4DDirection: {name: f"kernel.{name}" for name in ("log_dt", "log_A_real", "A_imag", "C")},
}


def unet_from_paper(
    config: Mapping, state_dict: Mapping[str, Tensor] | None = None, *, attention_backend: str = "einsum",
    memory: str = "lean", s4d_form: str = "scan",
) -> UNet3D:  # fmt: skip
    """The authors' Unet3D(**config) as our UNet3D, with their weights or, for None, fresh ones.

    config: their keyword arguments (dim, dim_mults, attn_heads, temporal_arch, ssm_version, ...).
    state_dict: the denoising network's, with their names. Under torch.device("meta") its names and shapes are checked
        and its values, for which there is no place, are not kept.
    attention_backend, memory, s4d_form: of TemporalConfig; attention is computed as published unless asked otherwise.

    Networks without temporal attention carry a relative position table that nothing reads: it is accepted and dropped.
    Raises ValueError naming an unknown, missing or misshapen argument or key.
    """
    options = {"attention_backend": attention_backend, "memory": memory, "s4d_form": s4d_form}
    model = UNet3D(_unet_config(config, options))
    if state_dict is not None:
        _load(model, state_dict)
    return model


def unet_to_paper(model: UNet3D) -> dict[str, Tensor]:
    """The network's weights under the authors' names and in their shapes; the tensors share memory with the model's.

    What they store and we do not is added: rotary frequencies, and zeros for a position table that nothing reads.
    Of a network that was compiled, the network. ValueError for one whose attention has other numbers of heads in space
    than in time, as theirs cannot have.
    """
    return _to_paper(getattr(model, "_orig_mod", model))


def temporal_layer_to_paper(layer: nn.Module) -> dict[str, Tensor]:
    """One temporal layer's weights under the authors' names, as `unet_to_paper` gives those of a network."""
    return _to_paper(layer)


def temporal_layer_from_paper(
    arch: str, config: Mapping, state_dict: Mapping[str, Tensor] | None = None, *, attention_backend: str = "einsum",
    memory: str = "lean", s4d_form: str = "scan",
) -> nn.Module:  # fmt: skip
    """One temporal layer of the authors as ours: a module (b, c, f, h, w) -> (b, c, f, h, w).

    arch: their temporal_arch ("attn", "l-attn", "bi-s6", ...). config: the layer's keyword arguments (dim, heads and
    dim_head of attention; dim, hidden_dim, linear_dim, version, bidirectional of state-space layers; a U-Net's spelling
    attn_heads, ssm_hidden_dim, ... works too). A version may also be the name of a mixer: "glu-mlp", the layer of the
    paper's first version, has no number. An attention state dict without rotary frequencies makes a layer without
    rotary embedding. Raises ValueError as unet_from_paper does, and for layers that do not exist here.
    """
    arguments = dict(config)
    channels = _take(arguments, "dim")
    options = {"attention_backend": attention_backend, "memory": memory, "s4d_form": s4d_form}
    temporal = _layer_config(arch, arguments, options)
    layer = build_temporal_layer(channels, temporal)
    if state_dict is not None:
        if isinstance(layer, TemporalAttention | TemporalLinearAttention):
            layer.rotary = "rotary_emb.freqs" in state_dict
        _load(layer, state_dict)
    return layer


def _to_paper(model: nn.Module) -> dict[str, Tensor]:
    if isinstance(model, UNet3D) and model.position_bias is not None:
        in_space, in_time = model.config.spatial_heads, model.config.temporal.heads
        if in_space not in (None, in_time):
            heads = f"{in_space} and {in_time}"
            raise ValueError(f"the authors' attention has as many heads in space as in time, not {heads}")
    return {**{name: value.reshape(shape) for name, shape, value in paper_parameters(model)}, **_theirs_only(model)}


def _unet_config(config: Mapping, options: dict[str, str]) -> UNet3DConfig:
    arguments = dict(config)
    arch = arguments.pop("temporal_arch", "attn")
    settings = _renamed(arguments, _TEMPORAL_ARGUMENTS)
    is_state_space = "s4d" in arch or "s6" in arch
    settings |= _state_space_arguments(arguments, "ssm_", "ssm_version", needs_version=is_state_space)
    temporal = _temporal_config(arch, settings, options)
    unet = _renamed(arguments, _UNET_ARGUMENTS)
    if arguments.pop("use_bert_text_cond", False):
        unet["cond_dim"] = BERT_DIM
    if arguments.pop("block_type", "resnet") != "resnet":
        raise ValueError(f"block_type must be 'resnet', the only one there is, got {config['block_type']!r}")
    _reject_rest(arguments, "the U-Net")
    if "base_channels" not in unet:
        raise ValueError("the U-Net needs the argument 'dim', which is missing")
    return UNet3DConfig(temporal=temporal, **unet)


def _layer_config(arch: str, arguments: dict, options: dict[str, str]) -> TemporalConfig:
    is_state_space = "s4d" in arch or "s6" in arch
    if "bidirectional" in arguments:
        bidirectional = arguments.pop("bidirectional")
        if bidirectional and is_state_space and not arch.startswith("bi-"):
            arch = f"bi-{arch}"
        elif arch.startswith("bi-") and not bidirectional:
            raise ValueError(f"bidirectional must be True for {arch!r}, got {bidirectional!r}")
    settings = _renamed(arguments, _LAYER_ARGUMENTS)
    settings |= _state_space_arguments(arguments, "", "version", needs_version=False)
    settings |= _state_space_arguments(arguments, "ssm_", "ssm_version", needs_version=False)
    if is_state_space and "mixer" not in settings:
        raise ValueError(f"{arch!r} needs the argument 'version', which is missing")
    arguments.pop("temporal_arch", None)
    _reject_rest(arguments, f"the layer {arch!r}")
    return _temporal_config(arch, settings, options)


def _temporal_config(arch: str, settings: dict, options: dict[str, str]) -> TemporalConfig:
    if "s4d" in arch and settings.get("mixer") == "gss":
        settings = settings | {"linear_dim": None}  # three times the width there, whatever the argument says
    return TemporalConfig(layer=arch, **options, **settings)


def _state_space_arguments(arguments: dict, prefix: str, version_name: str, *, needs_version: bool) -> dict:
    """Pop hidden_dim, linear_dim and the version, translated; a None of theirs is as good as absent."""
    settings = _renamed(arguments, {f"{prefix}hidden_dim": "states", f"{prefix}linear_dim": "linear_dim"})
    version = arguments.pop(version_name, None)
    if version is None:
        if needs_version:
            raise ValueError(f"a state-space network needs the argument {version_name!r}, which is missing")
        return settings
    if version not in MIXER_OF_VERSION and version not in MIXERS:
        known = ", ".join(map(str, MIXER_OF_VERSION))
        raise ValueError(f"{version_name} must be one of {known}, got {version!r}; or a mixer of {', '.join(MIXERS)}")
    return {**settings, "mixer": MIXER_OF_VERSION.get(version, version)}


def _renamed(arguments: dict, names: Mapping[str, str]) -> dict:
    taken = {ours: arguments.pop(theirs) for theirs, ours in names.items() if theirs in arguments}
    return {name: value for name, value in taken.items() if value is not None}


def _take(arguments: dict, name: str):
    if name not in arguments:
        raise ValueError(f"the layer needs the argument {name!r}, which is missing")
    return arguments.pop(name)


def _reject_rest(arguments: dict, owner: str) -> None:
    if arguments:
        raise ValueError(f"{owner} has no argument {', '.join(map(repr, arguments))}")


def _load(model: nn.Module, state_dict: Mapping[str, Tensor]) -> None:
    """Copy their tensors into our parameters; afterwards every key has been used."""
    unused = dict(state_dict)
    for name, shape, parameter in paper_parameters(model):
        tensor = _take_tensor(unused, name, shape)
        if tensor.is_meta and not parameter.is_meta:
            raise ValueError(f"{name!r} must have values, got a tensor on the meta device")
        _copy(parameter, tensor)
    for name, expected in _theirs_only(model).items():
        tensor = _take_tensor(unused, name, expected.shape)
        if name.endswith("rotary_emb.freqs"):
            _check_frequencies(name, tensor)
    if unused:
        raise ValueError(f"the state dict has keys that this network does not know: {', '.join(map(repr, unused))}")


def _take_tensor(state_dict: dict[str, Tensor], name: str, shape: tuple[int, ...]) -> Tensor:
    if name not in state_dict:
        raise ValueError(f"the state dict lacks {name!r}")
    tensor = state_dict.pop(name)
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        came = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise ValueError(f"{name!r} must be a floating-point tensor, got {came}")
    if tuple(tensor.shape) != tuple(shape):
        raise ValueError(f"{name!r} must be {tuple(shape)}, got {tuple(tensor.shape)}")
    return tensor


@torch.no_grad()
def _copy(parameter: Tensor, tensor: Tensor) -> None:
    if not parameter.is_meta:
        parameter.copy_(tensor.reshape(parameter.shape))


def _check_frequencies(name: str, tensor: Tensor) -> None:
    """Ours are computed, not loaded: theirs must be the same numbers, to the rounding of the type they come in."""
    if tensor.is_meta:
        return
    expected = rotary_frequencies(2 * tensor.numel(), tensor.device, torch.float64)
    tolerance = 8 * torch.finfo(tensor.dtype).eps
    if not torch.allclose(tensor.double(), expected, rtol=tolerance, atol=0):
        raise ValueError(f"{name!r} must be 10000 ** (-2 i / {2 * tensor.numel()}), got {tensor.tolist()}")


def _theirs_only(model: nn.Module) -> dict[str, Tensor]:
    """Tensors that their checkpoint of this network has and our model has no use for."""
    extra = {}
    for path, layer in model.named_modules():
        if isinstance(layer, TemporalAttention | TemporalLinearAttention) and layer.rotary:
            prefix = _their_name(model, f"{path}.to_out".lstrip(".")).removesuffix("to_out")
            dim_head = layer.to_out.in_features // layer.heads
            extra[f"{prefix}rotary_emb.freqs"] = rotary_frequencies(rotary_dim(dim_head), layer.to_out.weight.device)
    if isinstance(model, UNet3D) and model.position_bias is None:
        heads = model.config.spatial_heads or model.config.temporal.heads
        table = torch.zeros(32, heads, device=model.output_conv.weight.device)
        extra["time_rel_pos_bias.relative_attention_bias.weight"] = table
    return extra


def paper_parameters(model: nn.Module) -> Iterator[tuple[str, tuple[int, ...], Tensor]]:
    """(their name, their shape, our tensor) of every parameter of a U-Net or a temporal layer."""
    for name, parameter in model.named_parameters():
        theirs = _their_name(model, name)
        yield theirs, _their_shape(theirs, parameter), parameter


def _their_name(module: nn.Module, name: str) -> str:
    """The name in their state dict of a parameter of `module`. What no table lists is called the same."""
    for ours, theirs in _names(module).items():
        if name == ours:
            return theirs
        if ours.endswith(".") and name.startswith(ours):
            return theirs + _their_name(module.get_submodule(ours[:-1]), name.removeprefix(ours))
    child, dot, rest = name.partition(".")
    return f"{child}.{_their_name(module.get_submodule(child), rest)}" if dot else name


def _names(module: nn.Module) -> Mapping[str, str]:
    if isinstance(module, PreNormResidual):
        # All but spatial linear attention are wrapped once more there, to permute the video.
        is_wrapped = not isinstance(module.layer, SpatialLinearAttention)
        return {"norm.gain": "fn.norm.gamma", "layer.": "fn.fn.fn." if is_wrapped else "fn.fn."}
    if isinstance(module, TimeEmbedding):
        return {f"linears.{i}.": f"{2 * i + 1}." for i in range(len(module.linears))}
    names = _NAMES.get(type(module), {})
    if isinstance(module, Mixer):
        core = "s6" if isinstance(module.core, S6) else "s4d"
        return {ours: theirs.format(core=core) for ours, theirs in names.items()}
    return names


def _their_shape(theirs: str, parameter: Tensor) -> tuple[int, ...]:
    """The shape of a parameter there, by its name there."""
    shape = tuple(parameter.shape)
    if theirs.endswith("norm.gamma"):
        return (1, *shape, 1, 1, 1)
    if theirs.endswith("output_linear.0.weight"):  # a convolution of width 1
        return (*shape, 1)
    if parameter.dim() == 2 and theirs.endswith(("conv.weight", "conv_rev.weight")):  # depthwise
        return (shape[0], 1, shape[1])
    return shape
