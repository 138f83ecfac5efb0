"""What the bidirectional scan is compared with: the table. The mathematics is in `rival_scans` and `rival_layers`,
written there in plain torch, but for mamba-ssm's kernels.

Each rival is a function of named tensors, differentiable by autograd, and has a float64 truth of its own to be gated
against.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from benchmarks.kernels import mamba_ssm_sdist
from benchmarks.kernels import rival_layers as layers
from benchmarks.kernels import rival_scans as scans
from benchmarks.measure import eager

Tensors = dict[str, Tensor]


def first_and_last(x: Tensor) -> Tensor:
    return x[:: max(1, len(x) - 1)]


@dataclass(frozen=True)
class Rival:
    """name and label; make(sizes, generator) -> leaf tensors; run and truth: the same result, timed and plain.

    per_sequence: names of the tensors that belong to the sequences, which are stored in the dtype that is compared.
    few: a view of a few sequences of such a tensor, or of the result. is_optional: a torch may be unable to run it.
    bytes_per_element: peak working memory of forward and backward per (channel, time step) of a sequence, a rough upper
    estimate that keeps a measurement within the machine's memory.
    """

    name: str
    label: str
    make: Callable[[int, int, int, int, torch.Generator], Tensors]
    run: Callable[[Tensors], Tensor]
    truth: Callable[[Tensors], Tensor]
    per_sequence: tuple[str, ...]
    bytes_per_element: int
    few: Callable[[Tensor], Tensor] = first_and_last
    is_optional: bool = False


def leaves(rival: Rival, shape, dtype: torch.dtype = torch.float32, device: str = "cpu") -> Tensors:
    """Fresh leaf tensors of a rival for a `shapes.Shape`, always the same; sequences in `dtype`."""
    generator = torch.Generator(device).manual_seed(shape.length)
    made = rival.make(shape.sequences, shape.channels, shape.length, shape.states, generator)
    return {name: (value.to(dtype) if name in rival.per_sequence else value).requires_grad_()
            for name, value in made.items()}  # fmt: skip


def all_rivals(mamba: Path | None = None) -> tuple[Rival, ...]:
    """By the names and in the order of `scan_options.RIVALS`. mamba: a folder of `mamba_ssm_sdist`."""
    mamba_scan, mamba_name = mamba_ssm_sdist.scan_in(mamba), mamba_ssm_sdist.name_in(mamba)

    def scan(name: str, label: str, run: Callable[[Tensors], Tensor], size: int, truth=scans.twice, **more) -> Rival:
        return Rival(name, label, scans.scan_tensors, run, truth, scans.SCANNED, size, **more)

    def twice(name: str, label: str, own: Callable[..., Tensor], size: int, **more) -> Rival:
        return scan(name, f"{label}, twice with flips", partial(scans.twice, scan=own), size, **more)

    def attention(name: str, label: str, heads: Callable[[int], tuple[int, int]], size: int) -> Rival:
        make, per_sequence = layers.attention_tensors(heads), ("q", "k", "v")
        return Rival(name, label, make, layers.sdpa, layers.softmax_attention, per_sequence, size)

    return (
        twice("mamba-ssm", f"{mamba_name}'s kernels", mamba_scan, 64, is_optional=True),
        Rival("mamba-ssm-folded", f"{mamba_name}'s kernels, sequences folded with reset tokens", scans.folded_tensors,
              partial(scans.folded, scan=mamba_scan), scans.folded_truth, scans.SCANNED, 64, scans.few_folded,
              is_optional=True),
        twice("eager", "mamba-ssm's eager mathematics", partial(eager.selective_scan, steps_of=eager.by_index), 1024),
        twice("pscan", "parallel scan over time (Blelloch)", scans.pscan, 1024),
        scan("reference", "our reference backend (PyTorch)", scans.reference, 1024, scans.definition),
        twice("associative", "torch's associative_scan", scans.associative, 2048, is_optional=True),
        Rival("s4d-fft", f"S4D, {layers.S4D_STATES} states, two-sided FFT convolution", layers.s4d_tensors,
              layers.s4d_fft, layers.s4d_matrix, ("u",), 96),
        Rival("s4d-scan", f"S4D, {layers.S4D_STATES} states, by scan (ours)", layers.s4d_scan_tensors, layers.s4d_scan,
              layers.s4d_matrix, ("u",), 32),
        attention("sdpa-8x64", "SDPA, 8 heads of 64", lambda channels: (8, layers.HEAD_WIDTH), 192),
        attention("sdpa-equal", "SDPA of equal width", layers.equal_heads, 64),
        scan("compiled", "torch.compile (scalar code on a CPU), twice with flips",
             scans.compiled_once, 1024, is_optional=True),
    )  # fmt: skip
