"""Tensors of which each process holds a part, and the whole ones that checkpoints and samples are made of.

A tensor that is not sharded passes through: training has one path for both.
"""

from collections.abc import Mapping

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """The tensor with the parts of all processes, which call this together."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], is_kept: bool) -> dict[str, Tensor]:
    """Whole tensors, those that were sharded on the CPU; empty where is_kept is False.

    All processes call this together: one tensor at a time is whole on each device.
    """
    kept = {}
    for name, tensor in tensors.items():
        value = whole(tensor)
        if is_kept:
            kept[name] = value.cpu() if isinstance(tensor, DTensor) else value
    return kept


def part(tensor: Tensor, held: Tensor) -> Tensor:
    """What this process holds of a whole tensor that every process has, where and as it holds `held`."""
    if not isinstance(held, DTensor):
        return tensor.to(held.device)
    return distribute_tensor(tensor.to(held.device), held.device_mesh, held.placements, src_data_rank=None)


@torch.no_grad()
def take_parts(copy: nn.Module, network: nn.Module) -> None:
    """Give `copy`, a copy of the network before it was sharded, a copy of its sharded parameters without gradient."""
    for name, parameter in network.named_parameters():
        owner, _, attribute = name.rpartition(".")
        setattr(copy.get_submodule(owner), attribute, nn.Parameter(parameter.detach().clone(), requires_grad=False))
