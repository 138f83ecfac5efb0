"""What the scan would take if one part of the GPU did all its work without a pause: floors, modelled from counts.

Per element (batch, channel, time step) and both directions:

* memory: every tensor once, in the storage type; B, C and their gradients are shared by the channels
* forward, special functions: an exponential per state and direction, two for softplus and one for the gate each
* backward, issue: BACKWARD_INSTRUCTIONS per state and direction, counted in the machine code of a plain loop

The rates are of a multiprocessor of compute capability 8.0 to 12.0, at the clock that was read while measuring.

Source: CUDA C++ programming guide, "Throughput of native arithmetic instructions".
"""

from benchmarks.kernels.shapes import Shape

SPECIAL_PER_CLOCK = 16
INSTRUCTIONS_PER_CLOCK = 128  # threads of four schedulers
BACKWARD_INSTRUCTIONS = 17.2


def floors(shape: Shape, mode: str, itemsize: int, found: dict, sm_mhz: float) -> dict[str, float]:
    """Seconds by what binds: "memory" and "special functions" or "issue". `found`: of `gpu_device.describe`."""
    elements = shape.elements()
    clocks = found["multiprocessors"] * sm_mhz * 1e6
    memory = shape.traffic_bytes(mode, itemsize) / found["copy_bytes_per_second"]
    if mode == "forward":
        special = elements * (2 * shape.states + 6) / (clocks * SPECIAL_PER_CLOCK)
        return {"memory": memory, "special functions": special}
    instructions = elements * 2 * shape.states * BACKWARD_INSTRUCTIONS
    return {"memory": memory, "issue": instructions / (clocks * INSTRUCTIONS_PER_CLOCK)}
