"""Bytes saved for backward, exactly: which storages autograd keeps alive between forward and backward.

Nothing is allocated: the tensors are fake, with storage on the meta device, so a network of any size is counted on any
machine. Fake CPU tensors and not plain meta tensors, because they make torch choose the kernels it chooses on the CPU
(its fused attention saves other things than the plain one); the count is then that of real tensors, to the byte.
"""

import weakref
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode

from ssmvdm.compared import Layer, Network


class _Held:
    """One saved tensor. It lives as long as the node of the graph that saved it."""

    __slots__ = ("__weakref__", "tensor")

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor.detach()  # an output saved as it is would keep its own node alive, and so itself


def saved_bytes(function: Callable[[], Tensor], parameters: list[Tensor]) -> tuple[int, Tensor]:
    """Bytes of all storages that autograd holds for backward once `function` has returned, each counted once and whole,
    those of `parameters` not at all; and what `function` returned. What a node saved that has died since, as that of
    a detached intermediate does at once, takes no memory and is not counted."""
    owned = {parameter.untyped_storage()._cdata for parameter in parameters}
    held: weakref.WeakSet[_Held] = weakref.WeakSet()

    def pack(tensor: Tensor) -> _Held:
        saved = _Held(tensor)
        held.add(saved)
        return saved

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda saved: saved.tensor):
        result = function()
    storages = {storage._cdata: storage for storage in (saved.tensor.untyped_storage() for saved in held)}
    return sum(storage.nbytes() for key, storage in storages.items() if key not in owned), result


def network_saved_bytes(network: Network, layer: Layer, frames: int, is_fake: bool = True) -> dict:
    """Bytes saved by one training loss of batch 1: {"saved_bytes", "parameters"}. With real tensors backward runs too,
    and "unreached" names the parameters that it leaves without a gradient."""
    from ssmvdm import GaussianDiffusion

    with FakeTensorMode() if is_fake else nullcontext():
        model = network.build(layer)
        diffusion = GaussianDiffusion(loss="l2")
        x = torch.zeros(1, 3, frames, network.size, network.size)
        t = torch.zeros(1, dtype=torch.long)
        noise = torch.zeros_like(x)
        saved, loss = saved_bytes(lambda: diffusion.training_loss(model, x, t, noise), list(model.parameters()))
    count = {"saved_bytes": saved, "parameters": count_parameters(model)}
    if not is_fake:
        loss.backward()
        count["unreached"] = unreached_parameters(model)
    return count


def count_parameters(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


def unreached_parameters(model: nn.Module) -> list[str]:
    """Names of trainable parameters that have no gradient after backward."""
    return [name for name, p in model.named_parameters() if p.requires_grad and p.grad is None]
