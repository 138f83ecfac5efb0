"""What a training step costs, without doing it: parameters, operations, memory.

The step runs on fake tensors, which have shapes and no contents: a network of any size is counted on any machine. They
are fake tensors of the CPU; on a GPU torch chooses other kernels for attention, whose workspace differs.
"""

import weakref
from contextlib import nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from ssmvdm.operation_counts import formulas
from ssmvdm.process_memory import GIB
from ssmvdm.saved import count_parameters, saved_bytes
from ssmvdm.training_config import TrainingConfig
from ssmvdm.unet3d import UNet3D

LOW = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class StepCost:
    """Of one step of one process.

    parameters: of the network. forward_operations: of the loss of one pass; operations: of the whole step, see
        `ssmvdm.operation_counts` for what counts as one.
    state_bytes: weights, averages and Adam's moments, which are there all the time. saved_bytes: kept by one forward
        pass for its backward. peak_bytes: most that tensors take at one moment of the step, all of these included;
        workspace inside kernels and memory that the allocator keeps for reuse come on top.
    """

    parameters: int
    forward_operations: int
    operations: int
    state_bytes: int
    saved_bytes: int
    peak_bytes: int


class LiveBytes(TorchDispatchMode):
    """Counts the bytes of all storages made inside, each from its making until it dies: now, and at most."""

    def __init__(self) -> None:
        super().__init__()
        self.now = self.peak = 0
        self._alive: set[int] = set()

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(result):
            if isinstance(tensor, Tensor):
                self._meet(tensor.untyped_storage())
        return result

    def _meet(self, storage) -> None:
        key, size = storage._cdata, storage.nbytes()
        if key not in self._alive:
            self._alive.add(key)
            self.now += size
            self.peak = max(self.peak, self.now)
            weakref.finalize(storage, self._forget, key, size)

    def _forget(self, key: int, size: int) -> None:
        self._alive.discard(key)
        self.now -= size


def step_cost(config: TrainingConfig, is_fake: bool = True) -> StepCost:
    """What one step of this run costs. With is_fake=False it is done, on the CPU: the counts are the same."""
    with FakeTensorMode() if is_fake else nullcontext(), LiveBytes() as live:
        network, averages = UNet3D(config.network), UNet3D(config.network)
        optimizer = torch.optim.Adam(network.parameters(), lr=config.learning_rate)
        for parameter in network.parameters():
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()  # from here on there are moments
        optimizer.zero_grad()
        state = live.now
        live.peak = state
        operations = saved = 0
        for _ in range(config.accumulate):
            forward, backward, saved = _pass(config, network)
            operations += forward + backward
        optimizer.step()
        del averages
    return StepCost(count_parameters(network), forward, operations, state, saved, live.peak)


def _pass(config: TrainingConfig, network: UNet3D) -> tuple[int, int, int]:
    """Forward and backward: operations of each, and bytes that one keeps for the other."""
    diffusion, data = config.diffusion.process(), config.data
    x0 = torch.zeros(config.batch, config.network.channels, data.frames, data.size, data.size)
    t, noise = torch.zeros(config.batch, dtype=torch.long), torch.zeros_like(x0)
    cond_dim, low = config.network.cond_dim, LOW.get(config.precision)
    cond = None if cond_dim is None else torch.zeros(config.batch, cond_dim)
    cond_drop = None if cond_dim is None else torch.zeros(config.batch, dtype=torch.bool)

    def loss() -> Tensor:
        with torch.autocast("cpu", low, enabled=low is not None):
            predicted = network(diffusion.q_sample(x0, t, noise), t, cond, cond_drop=cond_drop)
        return diffusion.training_loss(lambda x_t, t: predicted.float(), x0, t, noise)

    with FlopCounterMode(display=False, custom_mapping=formulas()) as counter:
        saved, value = saved_bytes(loss, list(network.parameters()))
    forward = counter.get_total_flops()
    with FlopCounterMode(display=False, custom_mapping=formulas()) as counter:
        value.backward()
    return forward, counter.get_total_flops(), saved


def describe(config: TrainingConfig) -> str:
    """Shapes, parameters, operations and memory, as text for people."""
    cost, data, network = step_cost(config), config.data, config.network
    clip = (config.batch, network.channels, data.frames, data.size, data.size)
    sizes = [(width, data.frames, data.size >> level) for level, width in enumerate(network.widths[1:])]
    temporal = network.temporal
    is_state_space = temporal.layer not in ("attention", "linear-attention", "none")
    layer = f"{temporal.layer}, mixer {temporal.mixer}" if is_state_space else temporal.layer
    rows = {
        "clips": f"{data.name}, {clip} per pass, {config.accumulate} passes per step and process",
        "levels": "; ".join(f"{width} channels, {frames} x {size} x {size}" for width, frames, size in sizes),
        "temporal layers": layer,
        "parameters": f"{cost.parameters / 1e6:.2f} M",
        "operations": f"{_short(cost.forward_operations)} per forward pass, {_short(cost.operations)} per step",
        "weights, averages, moments": f"{cost.state_bytes / GIB:.2f} GiB",
        "kept for backward": f"{cost.saved_bytes / GIB:.2f} GiB",
        "most in a step": f"{cost.peak_bytes / GIB:.2f} GiB, predicted from the shapes of all tensors, not measured",
    }
    width = max(map(len, rows))
    return "\n".join(f"{name:<{width}}  {value}" for name, value in rows.items())


def _short(count: int) -> str:
    exponent = min((len(str(count)) - 1) // 3, 5)
    return f"{count / 1000**exponent:.3g} {'_kMGTP'[exponent].strip('_')}".rstrip()
