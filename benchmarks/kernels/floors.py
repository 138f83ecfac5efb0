"""What the scan would take if one part of the machine did all its work without a pause: floors, modelled from counts.

Per element (batch, channel, time step) and both directions:

* memory: every tensor once, in the storage type; B, C and their gradients are shared by the channels
* exponentials, on a CPU: one per state and direction; backward as many times more as it has operations
* forward on a GPU, special functions: an exponential per state and direction, two for softplus and one for the gate
  each
* backward on a GPU, issue: BACKWARD_INSTRUCTIONS per state and direction, counted in the machine code of a plain loop

The rates of a CPU are measured. Those of a GPU are of a multiprocessor of compute capability 8.0 to 12.0, at the clock
that was read while measuring.

Source: CUDA C++ programming guide, "Throughput of native arithmetic instructions".
"""

from benchmarks.kernels.shapes import Shape

CPU_BACKWARD = 7.5 / 3.5  # operations of a backward step over those of a forward step, per element and state
SPECIAL_PER_CLOCK = 16
INSTRUCTIONS_PER_CLOCK = 128  # threads of four schedulers
BACKWARD_INSTRUCTIONS = 17.2


def cpu_floors(shape: Shape, mode: str, itemsize: int, rates: dict) -> dict[str, float]:
    """Seconds of "forward" or "backward" by what binds. rates: of `measure.rates`; what they lack is left out."""
    work = 1.0 if mode == "forward" else CPU_BACKWARD
    rate, bandwidth = rates.get("exponentials_per_second"), rates.get("bytes_per_second")
    found = {"exponentials": work * shape.exponentials() / rate} if rate else {}
    return found | ({"memory": shape.traffic_bytes(mode, itemsize) / bandwidth} if bandwidth else {})


def gpu_floors(shape: Shape, mode: str, itemsize: int, found: dict, sm_mhz: float) -> dict[str, float]:
    """Seconds of "forward" or "backward" by what binds. found: of `gpu_device.describe`."""
    elements = shape.elements()
    clocks = found["multiprocessors"] * sm_mhz * 1e6
    memory = shape.traffic_bytes(mode, itemsize) / found["copy_bytes_per_second"]
    if mode == "forward":
        special = elements * (2 * shape.states + 6) / (clocks * SPECIAL_PER_CLOCK)
        return {"special functions": special, "memory": memory}
    instructions = elements * 2 * shape.states * BACKWARD_INSTRUCTIONS
    return {"issue": instructions / (clocks * INSTRUCTIONS_PER_CLOCK), "memory": memory}
