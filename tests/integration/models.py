"""The video models of other packages that the scan is put into: tiny configurations of two levels, random weights.

A model is built with a fixed seed, so that building it twice gives the same weights. Nothing is downloaded.
"""

from __future__ import annotations

import sys
import types
from collections.abc import Callable
from dataclasses import dataclass

import pytest
import torch
from torch import Tensor, nn

FRAMES = 4


@dataclass(frozen=True)
class VideoModel:
    """A model to test: how it is made and called, and what there is to swap in it."""

    name: str
    build: Callable[[], nn.Module]
    call: Callable[[nn.Module, Tensor], Tensor]
    input_shape: tuple[int, ...]  # of the noisy video
    owners: dict[str, int]  # temporal attention layers to swap, by the class that owns them
    kept: int = 0

    def made(self) -> nn.Module:
        torch.manual_seed(0)
        return self.build().train()

    def video(self) -> Tensor:
        return torch.randn(self.input_shape, generator=torch.Generator().manual_seed(1))


def diffusers():
    return pytest.importorskip("diffusers", reason="diffusers is not installed: pip install 'ssmvdm-kernels[test]'")


def noise(*shape: int) -> Tensor:
    """Conditions, the same at every call."""
    return torch.randn(shape, generator=torch.Generator().manual_seed(2))


def build_unet3d() -> nn.Module:
    return diffusers().UNet3DConditionModel(**_three_dimensional())


def build_i2vgen_xl() -> nn.Module:
    return diffusers().I2VGenXLUNet(**_three_dimensional())


def _three_dimensional() -> dict:
    return {
        "block_out_channels": (4, 8), "norm_num_groups": 2, "cross_attention_dim": 8, "attention_head_dim": 2,
        "layers_per_block": 1, "down_block_types": ("CrossAttnDownBlock3D", "DownBlock3D"),
        "up_block_types": ("UpBlock3D", "CrossAttnUpBlock3D"),
    }  # fmt: skip


def call_unet3d(model: nn.Module, video: Tensor) -> Tensor:
    return model(video, 7, encoder_hidden_states=noise(len(video), 3, 8)).sample


def call_i2vgen_xl(model: nn.Module, video: Tensor) -> Tensor:
    batch = len(video)
    first_frames = noise(*video.shape)
    fps, text = torch.full((batch,), 8), noise(batch, 3, 8)
    image = noise(batch, 8)
    return model(video, 7, fps, first_frames, image, text).sample


def build_motion_model() -> nn.Module:
    return diffusers().UNetMotionModel(
        block_out_channels=(16, 32), norm_num_groups=16, cross_attention_dim=16, num_attention_heads=2,
        layers_per_block=1, down_block_types=("CrossAttnDownBlockMotion", "DownBlockMotion"),
        up_block_types=("UpBlockMotion", "CrossAttnUpBlockMotion"),
    )  # fmt: skip


def call_motion_model(model: nn.Module, video: Tensor) -> Tensor:
    return model(video, 7, encoder_hidden_states=noise(len(video) * FRAMES, 3, 16)).sample  # one text per frame


def build_stable_video() -> nn.Module:
    return diffusers().UNetSpatioTemporalConditionModel(
        block_out_channels=(32, 64), cross_attention_dim=16, num_attention_heads=(2, 2), layers_per_block=1,
        addition_time_embed_dim=16, projection_class_embeddings_input_dim=48,
        down_block_types=("CrossAttnDownBlockSpatioTemporal", "DownBlockSpatioTemporal"),
        up_block_types=("UpBlockSpatioTemporal", "CrossAttnUpBlockSpatioTemporal"),
    )  # fmt: skip


def call_stable_video(model: nn.Module, video: Tensor) -> Tensor:
    batch = len(video)
    return model(video, 7, noise(batch, 1, 16), added_time_ids=noise(batch, 3)).sample


def build_latte() -> nn.Module:
    return diffusers().LatteTransformer3DModel(
        sample_size=8, patch_size=2, num_layers=2, num_attention_heads=3, attention_head_dim=8, in_channels=4,
        cross_attention_dim=24, caption_channels=16, norm_type="ada_norm_single", num_embeds_ada_norm=1000,
        norm_elementwise_affine=False, norm_eps=1e-6, activation_fn="gelu-approximate", attention_bias=True,
        video_length=FRAMES,
    )  # fmt: skip


def call_latte(model: nn.Module, video: Tensor) -> Tensor:
    batch = len(video)
    return model(video, torch.full((batch,), 7), encoder_hidden_states=noise(batch, 3, 16)).sample


def build_video_diffusion_pytorch() -> nn.Module:
    return video_diffusion_pytorch().Unet3D(dim=8, dim_mults=(1, 2), attn_heads=2, attn_dim_head=8)


def call_video_diffusion_pytorch(model: nn.Module, video: Tensor) -> Tensor:
    return model(video, torch.full((len(video),), 7))


def video_diffusion_pytorch():
    """The package, installed without its dependencies. It imports torchvision, whose wheels bring a torch of their own,
    for reading and writing images alone: where it is not installed, modules that are all but empty take its place."""
    names = ("torchvision", "torchvision.transforms", "torchvision.utils")
    try:
        import torchvision  # noqa: F401
    except ImportError:
        stand_ins = {name: types.ModuleType(name) for name in names}
        stand_ins["torchvision"].transforms = stand_ins["torchvision.transforms"]
        stand_ins["torchvision"].utils = stand_ins["torchvision.utils"]
        stand_ins["torchvision.transforms"].ToTensor = lambda: None  # a default argument, made at import
    else:
        stand_ins = {}
    sys.modules.update(stand_ins)
    try:
        return pytest.importorskip(
            "video_diffusion_pytorch.video_diffusion_pytorch",
            reason="video-diffusion-pytorch is not installed: make test-integration",
        )
    finally:
        for name in stand_ins:  # others ask whether torchvision is there, and it is not
            del sys.modules[name]


MODELS = (
    VideoModel(
        "UNet3DConditionModel", build_unet3d, call_unet3d, (2, 4, FRAMES, 8, 8), {"TransformerTemporalModel": 10}
    ),
    VideoModel(
        "I2VGenXLUNet", build_i2vgen_xl, call_i2vgen_xl, (2, 4, FRAMES, 8, 8),
        {"TransformerTemporalModel": 10, "I2VGenXLTransformerTemporalEncoder": 1},
    ),
    VideoModel(
        "UNetMotionModel", build_motion_model, call_motion_model, (2, 4, FRAMES, 8, 8), {"AnimateDiffTransformer3D": 14}
    ),
    VideoModel(
        "UNetSpatioTemporalConditionModel", build_stable_video, call_stable_video, (2, FRAMES, 8, 8, 8),
        {"TransformerSpatioTemporalModel": 4}, kept=4,
    ),
    VideoModel(
        "LatteTransformer3DModel", build_latte, call_latte, (2, 4, FRAMES, 8, 8), {"LatteTransformer3DModel": 2}
    ),
    VideoModel(
        "Unet3D", build_video_diffusion_pytorch, call_video_diffusion_pytorch, (2, 3, FRAMES, 16, 16),
        {"EinopsToAndFrom": 6},
    ),
)  # fmt: skip
