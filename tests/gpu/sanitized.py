"""python -m tests.gpu.sanitized: the calls that compute-sanitizer watches. Nothing is compared here.

Every operator in every mode and layout, then scans of edge shapes, on every GPU backend in turn, or on those that
--backend names; as many as fit in --seconds, since a tool slows them down a hundredfold. The last line says how many
there were.
"""

from __future__ import annotations

import argparse
import itertools
import time
from collections.abc import Callable, Iterator

import torch

from ssmvdm_kernels import available_backends, check
from ssmvdm_kernels.backends import missing
from tests.kernels import cases
from tests.kernels.cases import Case
from tests.kernels.checks import run_case

from .device import BACKENDS

OPERATORS = {"scan": check.scan_case, "s4d": check.s4d_case, "conv": check.conv_case}
MODES = {"scan": check.SCAN_MODES, "s4d": check.SCAN_MODES, "conv": check.CONV_MODES}
EDGES = [
    Case(layout=layout, direction=direction, dtype=dtype, initial=True, last=True, **shape)
    for shape, dtype in (
        ({"length": 1, "channels": 1, "lanes": (1,), "states": 1}, torch.float32),
        ({"length": 33, "channels": 19, "lanes": (17,), "states": 16}, torch.bfloat16),
        ({"length": 65, "channels": 33, "lanes": (), "states": 17}, torch.float16),
        ({"length": 257, "channels": 3, "lanes": (5,), "states": 16}, torch.float32),
    )
    for direction in ("both", "forward")
    for layout in (*cases.LAYOUTS, "offset")
]


def calls(backend: str, device: str) -> Iterator[tuple[str, Callable[[], object]]]:
    """(name, what is run), in an order in which each operator comes early."""
    made = [
        [(operator, mode, layout) for mode in MODES[operator] for layout in check.LAYOUTS] for operator in OPERATORS
    ]
    for operator, mode, layout in filter(None, itertools.chain(*itertools.zip_longest(*made))):
        tensors, run = OPERATORS[operator](mode, check.Inputs(layout, device))
        stored = check.stored_as(torch.bfloat16, tensors)
        yield f"{operator}, {mode}, {layout}", lambda run=run, stored=stored: check.results(run, stored, backend)
    for case in EDGES:
        yield case.name, lambda case=case: run_case(case, backend)


def run_all(names: list[str], device: str, seconds: float) -> dict[str, int]:
    """How many calls of each backend fit in the time; the backends share it."""
    counts = dict.fromkeys(names, 0)
    for index, name in enumerate(names):
        end = time.monotonic() + seconds / len(names)
        for label, call in calls(name, device):
            if time.monotonic() > end:
                break
            print(f"{index + 1}/{len(names)} {name}: {label}", flush=True)
            call()
            if device == "cuda":
                torch.cuda.synchronize()
            counts[name] += 1
    return counts


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.sanitized", description=__doc__.splitlines()[0])
    parser.add_argument("--seconds", type=float, default=60.0)
    parser.add_argument("--backend", nargs="+", choices=BACKENDS, default=BACKENDS)
    options = parser.parse_args(arguments)
    absent = [name for name in options.backend if name not in available_backends()]
    if absent:
        print("\n".join(f"{name} does not run here: {missing(name)}" for name in absent))
        return 1
    counts = run_all(options.backend, "cuda", options.seconds)
    print("calls: " + ", ".join(f"{name} {count}" for name, count in counts.items()))
    return 0 if all(counts.values()) else 1


if __name__ == "__main__":
    raise SystemExit(main())
