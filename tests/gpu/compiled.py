"""python -m tests.gpu.compiled: puts the Triton kernels of the benchmark into Triton's cache, which takes a compiler
half a minute, so that the benchmark spends its time on measuring.

Sizes and strides are not compiled in: a few sequences give the kernels of all.
"""

from __future__ import annotations

from functools import partial

import torch

from benchmarks.kernels.scan_case import gradients, like_output, our_tensors, run_ours
from benchmarks.kernels.scan_options import LAYOUTS, ScanOptions
from benchmarks.kernels.shapes import Shape, shape_named


def shape_of_few(options: ScanOptions) -> Shape:
    """The widest of the benchmark's shapes with few sequences and steps, of which kernels take as many at a time."""
    channels = max(shape_named(name, options.states).shape.channels for name in options.shapes)
    return Shape(64, channels, 16, options.states)


def main(backend: str = "triton", device: str = "cuda") -> None:
    options = ScanOptions.quick(device)
    run = partial(run_ours, backend=backend)
    for layout in LAYOUTS:
        tensors = our_tensors(shape_of_few(options), getattr(torch, options.storage_types()[0]), layout, device)
        y, _ = gradients(run, tensors, like_output(run(tensors).detach()))
        print(f"{layout}: {tuple(y.shape)}", flush=True)


if __name__ == "__main__":
    main()
