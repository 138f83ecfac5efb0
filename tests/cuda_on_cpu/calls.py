"""Calls of the kernels on numpy arrays, with arguments as the torch binding makes them.

Sequences are (batch, channels, length, lanes) arrays of float32, float16 or uint16 (bfloat16) of any strides. B and C
are (batch, [groups,] states, length, lanes) or, constant in time, float32 (channels, states). A job is one kernel with
its inputs and options; running it gives the outputs and the gradients by the names of the inputs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from types import ModuleType

import numpy as np

from .memory import FENCE, Memory, element_strides

FLOAT = np.float32


@dataclass(frozen=True)
class Machine:
    """The device that is emulated, and the order in which it runs what may run in any order.

    exact: approximate functions are exact, rather than as wrong as they may be.
    """

    multiprocessors: int = 2
    shared_bytes: int = 227 * 1024
    order: str = "forward"  # | reverse | random
    seed: int = 1
    exact: bool = False


@dataclass(frozen=True)
class Job:
    """`kernel`: scan | s4d | conv. inputs: by name, None where not given; "dy" among them asks for the gradients.

    needs: the inputs whose gradients are wanted, None: all that are given.
    """

    name: str
    kernel: str
    inputs: dict
    options: dict
    machine: Machine = field(default_factory=Machine)
    needs: tuple[str, ...] | None = None


@dataclass(frozen=True)
class Outcome:
    """outputs by name; problems in words; what the emulator counted; whether every kernel ran to its end."""

    outputs: dict
    problems: tuple[str, ...]
    counters: dict
    is_complete: bool




def run(harness: ModuleType, job: Job, fence: int = FENCE) -> Outcome:
    """Run a job's kernels and look at all memory afterwards."""
    machine = job.machine
    harness.configure(machine.multiprocessors, machine.shared_bytes, machine.order, machine.seed, machine.exact)
    harness.counters()
    memory = Memory(fence)
    inputs = {name: memory.input(name, x) for name, x in job.inputs.items()}
    steps, outputs = KERNELS[job.kernel](memory, inputs, job.options, job.needs)
    problems = []
    for name, arguments in steps:
        try:
            getattr(harness, name)(arguments)
        except RuntimeError as error:
            problems.append(f"{name}: {error}")
            break
    counters = harness.counters()
    is_complete = not problems
    if is_complete:
        problems = memory.problems()
    if counters["atomics"]:
        problems.append(f"{counters['atomics']} atomic accesses: results depend on the order of threads")
    return Outcome(outputs, tuple(problems), counters, is_complete)


class Arguments:
    """What all kernels ask of a call: the tensor of a direction, and room for results."""

    def __init__(self, memory: Memory, inputs: dict, options: dict, needs: tuple[str, ...] | None, sequence: str):
        self.memory, self.inputs, self.options = memory, inputs, options
        self.batch, self.channels, self.length, self.lanes = inputs[sequence].shape
        self.storage = inputs[sequence].dtype
        self.direction, self.merge = options["direction"], options.get("merge", "sum")
        self.is_both = self.direction == "both"
        self.concatenates = self.is_both and self.merge in ("cat", "none")
        self.needs = needs
        self.outputs: dict = {}

    @property
    def directions(self) -> range:
        return range(2 if self.is_both else 1)

    def own(self, name: str, d: int) -> str:
        """The name of what direction d uses."""
        return name + "_b" if d == 1 and self.inputs.get(name + "_b") is not None else name

    def get(self, name: str, d: int) -> np.ndarray | None:
        return self.inputs.get(self.own(name, d))

    def split(self, y: np.ndarray) -> list[np.ndarray]:
        """One output for each direction, or twice the output of their sum."""
        return [y[:, : self.channels], y[:, self.channels :]] if self.concatenates else [y, y]

    def new_output(self, name: str) -> list[np.ndarray]:
        like = self.inputs["u"]
        shape = (self.batch, self.channels * (2 if self.concatenates else 1), self.length, self.lanes)
        self.outputs[name] = self.memory.output(name, shape, self.storage, element_strides(like))
        return self.split(self.outputs[name])

    def new_gradient(self, name: str, d: int) -> np.ndarray | None:
        """Of the argument that belongs to direction d alone; None where it is not given or not wanted."""
        name = name + "_b" if d == 1 else name
        x = self.inputs.get(name)
        if x is None or (self.needs is not None and name not in self.needs):
            return None
        like = element_strides(x) if x.ndim >= 4 else None
        self.outputs[name] = self.memory.output("d" + name, x.shape, x.dtype, like)
        return self.outputs[name]

    def is_shared(self, name: str) -> bool:
        return self.inputs.get(name + "_b") is None

    def frame(self) -> dict:
        return {
            "batch": self.batch,
            "channels": self.channels,
            "length": self.length,
            "lanes": self.lanes,
            "directions": len(self.directions),
            "concatenate": self.concatenates,
            "scale": 0.5 if self.is_both and self.merge == "mean" else 1.0,
            "z": self.inputs.get("z"),
        }

    def is_reverse(self, d: int) -> bool:
        return d == 1 or self.direction == "reverse"


def scan(memory: Memory, inputs: dict, options: dict, needs) -> tuple[list, dict]:
    """The selective scan. options: direction, merge, softplus, last (has a last state), y (backward returns y too)."""
    a = Arguments(memory, inputs, options, needs, "u")
    states = inputs["A"].shape[1]

    def given(name: str, d: int) -> dict:  # B or C, constant or not
        x = a.get(name, d)
        return {name + "_const" if x.ndim == 2 else name: x}

    def direction(d: int) -> dict:
        names = ("u", "delta", "A", "D", "delta_bias")
        return {"reverse": a.is_reverse(d), **{n: a.get(n, d) for n in names}, **given("B", d), **given("C", d)}

    groups = [x.shape[1] for name in ("B", "C", "B_b", "C_b") if (x := inputs.get(name)) is not None and x.ndim == 5]
    state_shape = (a.batch, a.channels, states, a.lanes)
    call = a.frame() | {
        "states": states,
        "groups": math.lcm(*groups),
        "delta_softplus": options["softplus"],
        "dir": [direction(d) for d in a.directions],
        "initial_state": inputs.get("initial_state"),
    }
    forward = call | {"y": a.new_output("y")}
    if options.get("last"):
        a.outputs["last_state"] = forward["last_state"] = memory.output("last_state", state_shape, FLOAT)
    steps = [("scan_forward", forward)]
    if inputs.get("dy") is None:
        return steps, a.outputs

    def gradients(d: int) -> dict:
        found = {"d" + name: a.new_gradient(name, d) for name in ("u", "delta", "A", "D", "delta_bias")}
        for name in "BC":
            gradient = a.new_gradient(name, d)
            constant = gradient is not None and gradient.ndim == 2
            found["d" + name + "_const" if constant else "d" + name] = gradient
        return found

    backward = call | {
        "y": a.split(inputs["dy"]),
        "grad": [gradients(d) for d in a.directions],
        "shared": {name: a.is_shared(name) for name in ("u", "delta", "A", "B", "C", "D", "delta_bias")},
        "dz": a.new_gradient("z", 0),
        "dlast_state": inputs.get("dlast"),
        "dinitial_state": a.new_gradient("initial_state", 0),
    }
    if options.get("y"):
        backward["forward_y"] = a.new_output("y again")
    return [*steps, ("scan_backward", backward)], a.outputs


def s4d(memory: Memory, inputs: dict, options: dict, needs) -> tuple[list, dict]:
    """The S4D scan; decay and weight are float32 (channels, modes, 2)."""
    a = Arguments(memory, inputs, options, needs, "u")
    names = ("u", "decay", "weight", "D")
    call = a.frame() | {
        "modes": inputs["decay"].shape[1],
        "dir": [{"reverse": a.is_reverse(d), **{n: a.get(n, d) for n in names}} for d in a.directions],
    }
    steps = [("s4d_forward", call | {"y": a.new_output("y")})]
    if inputs.get("dy") is None:
        return steps, a.outputs
    backward = call | {
        "y": a.split(inputs["dy"]),
        "grad": [{"d" + name: a.new_gradient(name, d) for name in names} for d in a.directions],
        "shared": {name: a.is_shared(name) for name in names},
        "dz": a.new_gradient("z", 0),
    }
    if options.get("y"):
        backward["forward_y"] = a.new_output("y again")
    return [*steps, ("s4d_backward", backward)], a.outputs


def conv(memory: Memory, inputs: dict, options: dict, needs) -> tuple[list, dict]:
    """The depthwise convolution; outputs "y" and "y_b", their gradients "dy" and "dy_b"."""
    a = Arguments(memory, inputs, options, needs, "x")
    first, last = {"forward": (0, 0), "reverse": (1, 1), "both": (0, 1)}[a.direction]

    def both(make: Callable) -> list:
        return [make(d) if first <= d <= last else None for d in range(2)]

    def output(d: int) -> np.ndarray:
        name = "y_b" if d else "y"
        a.outputs[name] = memory.output(name, inputs["x"].shape, a.storage, element_strides(inputs["x"]))
        return a.outputs[name]

    def gradient(name: str, d: int) -> np.ndarray | None:
        """A shared filter's gradients of both directions go to the same place."""
        own = a.own(name, d)
        return a.outputs[own] if own in a.outputs else a.new_gradient(name, int(own.endswith("_b")))

    call = {
        "batch": a.batch, "channels": a.channels, "length": a.length, "lanes": a.lanes,
        "width": inputs["weight"].shape[1],
        "first_direction": first,
        "last_direction": last,
        "silu": options["silu"],
        "x": inputs["x"],
        "weight": both(lambda d: a.get("weight", d)),
        "bias": both(lambda d: a.get("bias", d)),
    }  # fmt: skip
    steps = [("conv_forward", call | {"y": both(output)})]
    if inputs.get("dy") is None and inputs.get("dy_b") is None:
        return steps, a.outputs
    backward = call | {
        "y": both(lambda d: inputs["dy_b" if d else "dy"]),
        "dx": a.new_gradient("x", 0),
        "dweight": both(lambda d: gradient("weight", d)),
        "dbias": both(lambda d: gradient("bias", d)),
    }
    return [*steps, ("conv_backward", backward)], a.outputs


KERNELS = {"scan": scan, "s4d": s4d, "conv": conv}
