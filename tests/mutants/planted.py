"""The mutants: bugs that kernels have had somewhere, as exact replacements in one source, and the tests that see them.

A mutant that no longer applies shows that the line has moved: `test_mutants.py` asks for that.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from tests.cuda_on_cpu.build import ROOT

TARGETS = ("triton", "cuda", "cpu")  # in this order: what builds the CPU extension comes last


@dataclass(frozen=True)
class Mutant:
    """bug: what is planted. tests: arguments of pytest, which must fail with the mutant and pass without."""

    bug: str
    target: str
    path: str
    before: str
    after: str
    tests: tuple[str, ...]

    @property
    def name(self) -> str:
        return f"{self.target}: {self.bug}"

    def problem(self, root: Path = ROOT) -> str | None:
        """Why it cannot be planted, or None."""
        count = (root / self.path).read_text(encoding="utf-8").count(self.before)
        return None if count == 1 else f"{self.path} has {self.before!r} {count} times, not once"

    def plant(self, root: Path) -> None:
        path = root / self.path
        path.write_text(path.read_text(encoding="utf-8").replace(self.before, self.after), encoding="utf-8")


def selected(path: str, words: str, *more: str) -> tuple[str, ...]:
    return (path, "-k", words, *more)


def in_kernels(file: str, words: str) -> tuple[str, ...]:
    return selected(f"tests/kernels/test_{file}.py", f"cpu and {words}")


def interpreted(words: str) -> tuple[str, ...]:
    return selected("tests/triton/interpreted/test_scan.py", words)


def edges(family: str) -> tuple[str, ...]:
    return (f"tests/cuda_on_cpu/test_scan_kernels.py::test_edges[fast-{family}]",)


CORE = in_kernels("accuracy", "test_core")
TILES = interpreted("test_tiles_of_gpus")
BINDING = selected("tests/cuda_on_cpu/test_operators.py", "same_bits_on_any_machine")
CONVOLVED = selected("tests/triton/interpreted/test_others.py", "test_convolution_on_the_tiles")
LAUNCH = ("tests/triton/test_launch.py",)
FORWARD, BACKWARD = "csrc/cpu/scan_forward.h", "csrc/cpu/scan_backward.h"
AT = "state_tile.at(plan, d, {}, block, n)".format
KERNELS = "ssmvdm_kernels/triton_kernels"

MUTANTS = (
    Mutant("dz of one direction dropped", "cpu", BACKWARD, "args.directions == 2 ? y[1] + at : nullptr, block, at);",
           "nullptr, block, at);", CORE),
    Mutant("dz of one direction dropped", "cuda", "csrc/cuda/scan_backward.cu",
           "p.meets_in[kOfDz] = both && p.concatenate;", "p.meets_in[kOfDz] = false;", edges("options")),
    Mutant("dz of one direction dropped", "triton", f"{KERNELS}/call.py",
           "(call.scale, call.halves and direction == 1,", "(call.scale, False,", interpreted("more_channels")),

    Mutant("padding not neutral", "cpu", "csrc/cpu/rows.h",
           "i < count ? to_float(p[rows.offset[i] + t * time_stride]) : Scalar(0);",
           "to_float(p[rows.offset[i] + t * time_stride]);", in_kernels("memory_safety", "test_memory_beside")),
    Mutant("padding not neutral", "cuda", "csrc/cuda/scan_adjoint.cuh", "return owns ? value : 0.f;", "return value;",
           edges("sizes")),
    Mutant("padding not neutral", "triton", f"{KERNELS}/tiles.py",
           "return tl.load(at(view, tile, t), mask=tile.mask, other=0.0)",
           "return tl.load(at(view, tile, t), mask=tile.mask, other=1.0)", TILES),

    Mutant("offset in 32 bits", "cpu", "csrc/cpu/rows.h", "offset = sequence / lanes * view.batch_stride,",
           "offset = int32_t(sequence / lanes * view.batch_stride),",
           in_kernels("memory_safety", "test_offsets_beyond_32_bits and batch")),
    Mutant("offset in 32 bits", "cuda", "csrc/cuda/scan_common.cuh", "return batch * x.batch + lane * x.lane;",
           "return int32_t(batch * x.batch + lane * x.lane);",
           selected("tests/cuda_on_cpu/test_scan_kernels.py", "test_offsets_beyond_32_bits and batch")),
    Mutant("offset in 32 bits", "triton", f"{KERNELS}/tiles.py", "offset(t.start, view.time, view.FAR))",
           "offset(t.start, view.time, False))", interpreted("test_offsets_beyond_32_bits")),

    Mutant("no barrier where the directions meet", "cuda", "csrc/cuda/scan_common.cuh",
           "if (has_met && begin < middle && middle <= end) __syncthreads();", "", edges("sizes")),
    Mutant("no barrier before shared memory is used again", "cuda", "csrc/cuda/conv.cu",
           "tap) * p.columns.channels + channel] = sum;\n  }\n  __syncthreads();",
           "tap) * p.columns.channels + channel] = sum;\n  }",
           ("tests/cuda_on_cpu/test_conv_kernels.py::test_edges[race-filters]", "-m", "slow")),

    Mutant("launch on another stream", "cuda", "csrc/cuda/scan_backward.cu", "finish_parameters<Map>(args, p, stream);",
           "finish_parameters<Map>(args, p, nullptr);", BINDING),
    Mutant("no device guard", "cuda", "csrc/cuda/binding.cpp", "const DeviceGuard guard(index);", "", BINDING),
    Mutant("no device guard", "triton", f"{KERNELS}/launch.py",
           'torch.cuda.device(device) if device.type == "cuda" else contextlib.nullcontext()',
           "contextlib.nullcontext()", LAUNCH),

    Mutant("B and C exchanged", "cpu", FORWARD, f"{AT(0)},\n{' ' * 26}{AT(1)},", f"{AT(1)},\n{' ' * 26}{AT(0)},", CORE),
    Mutant("B and C exchanged", "cuda", "csrc/cuda/scan_launch.cuh", "see(x.B),\n                see(x.C),",
           "see(x.C),\n                see(x.B),", edges("sizes")),
    Mutant("B and C exchanged", "triton", f"{KERNELS}/scan_call.py",
           'self.tensors.u.dim(), self.groups) for name in "BC"', 'self.tensors.u.dim(), self.groups) for name in "CB"',
           interpreted("test_pairs_of_options")),

    Mutant("reverse direction off by one", "cpu", FORWARD, "*B = w.B + first * w.B_step,",
           "*B = w.B + (w.reverse && first > 0 ? first - 1 : first) * w.B_step,", CORE),
    Mutant("reverse direction off by one", "cuda", "csrc/cuda/scan_launch.cuh",
           "(length - 1) * view.time_stride * size", "(length - 2) * view.time_stride * size", edges("options")),
    Mutant("reverse direction off by one", "triton", f"{KERNELS}/tiles.py",
           "Time(length - 1 - step if REVERSE", "Time(tl.maximum(length - 2 - step, 0) if REVERSE", TILES),

    Mutant("second stage skipped", "cpu", BACKWARD, "  segments.finish(run);\n", "", CORE),
    Mutant("second stage skipped", "cuda", "csrc/cuda/scan_backward.cu",
           "if (status == cudaSuccess) status = finish_parameters<Map>",
           "if (status != cudaSuccess) status = finish_parameters<Map>",
           edges("sizes")),
    Mutant("launch for further states skipped", "triton", f"{KERNELS}/scan_forward.py",
           "for launch in range(call.launches):", "for launch in range(1):", TILES),

    Mutant("state recovered by subtraction", "cpu", BACKWARD,
           "const Vec qh = q[k][n] * Vec::load(previous + (k * kStates + n) * W);",
           "const Vec qh = dh * (Vec::load(previous + ((K + k) * kStates + n) * W) - du[k] * b);",
           in_kernels("gradients", "test_dA_per_state")),
    Mutant("state recovered by subtraction", "cuda", "csrc/cuda/scan_adjoint.cuh", "= q[n] * before[n];",
           "= dh[n] * (after[n] - du * B[j]);",
           selected("tests/cuda_on_cpu/test_operators.py", "test_dA_per_state")),
    Mutant("state recovered by subtraction", "triton", f"{KERNELS}/scan_adjoint.py", "along_decay = q * before",
           "along_decay = dh * (after - dt * u * load_modulation(x.B, tile, t, sizes, O))",
           interpreted("test_regimes")),

    Mutant("sums in an order that threads decide", "cpu", BACKWARD, "sums.of_partial(partial);",
           "sums.of_partial(begin / plan.splits);", in_kernels("determinism", "test_any_number_of_threads")),
    Mutant("sums by atomics", "cuda", "csrc/cuda/scan_adjoint.cuh",
           "sum += int64_t(first_state + n) * p.channels;\n    *sum = is_first_unit ? value : *sum + value;",
           "sum += int64_t(first_state + n) * p.channels;\n    if (is_first_unit) *sum = 0.f;\n"
           "    atomicAdd(sum, value);",
           edges("sizes")),
    Mutant("sums by atomics", "triton", f"{KERNELS}/arithmetic.py",
           "tl.store(place, total + tl.load(place, mask=only_if(add, mask), other=0.0), mask=mask)",
           "tl.atomic_add(place, total, mask=mask)", LAUNCH),

    Mutant("stale sums", "cpu", BACKWARD, "    channel_sums.clear_segment();\n", "", CORE),
    Mutant("stale sums", "cuda", "csrc/cuda/scan_sums.cuh", "if (at.lap > 0) dB = to[0],", "dB = to[0],",
           edges("sizes")),
    Mutant("stale sums", "triton", f"{KERNELS}/arithmetic.py", "mask=only_if(add, mask)", "mask=mask", TILES),

    Mutant("gradient of a shared argument has one direction", "cpu", "csrc/cpu/plan.h",
           "both && shared ? sums[1] : nullptr", "nullptr", in_kernels("accuracy", "test_every_pair")),
    Mutant("gradient of a shared argument has one direction", "cuda", "csrc/cuda/scan_backward.cu",
           "shared ? directions - 1 : 0", "0", edges("options")),
    Mutant("gradient of a shared argument has one direction", "triton", f"{KERNELS}/call.py",
           "self.sums[name] + part if name in self.sums else part", "part", interpreted("test_pairs_of_options")),

    Mutant("D u added by every turn of states", "cuda", "csrc/cuda/scan_forward.cu",
           "sum[k] = kPlain || turn & 1 ? D[k] * us[k][i] : 0.f;", "sum[k] = D[k] * us[k][i];", edges("sizes")),
    Mutant("D u added by every turn of states", "triton", f"{KERNELS}/scan_walk.py",
           "if WITH_SKIP and x.D is not None:", "if x.D is not None:", TILES),

    Mutant("filter turned around", "cpu", "csrc/cpu/conv.h", "sum = fma(Vec::load(w + k * W),",
           "sum = fma(Vec::load(w + (last - k) * W),", in_kernels("conv", "test_accuracy")),
    Mutant("filter turned around", "cuda", "csrc/cuda/conv.cu", "p.weight[d][channel * p.width + p.width - 1 - j]",
           "p.weight[d][channel * p.width + j]", ("tests/cuda_on_cpu/test_conv_kernels.py::test_edges[fast-filters]",)),
    Mutant("filter turned around", "triton", f"{KERNELS}/conv.py",
           "total += window[k] * taps[O.WIDTH - 1 - k if TURNED else k]",
           "total += window[k] * taps[O.WIDTH - 1 - k]", CONVOLVED),

    Mutant("gradient of a decay not conjugated", "cpu", "csrc/cpu/s4d_direct.h", "fnma(c_im, s_re, c_re * s_im)",
           "fma(c_im, s_re, c_re * s_im)", in_kernels("s4d", "float32")),
    Mutant("gradient of a decay not conjugated", "cuda", "csrc/cuda/s4d_backward.cu",
           "twice(conjugate(weight * of_decay))", "twice(weight * of_decay)",
           ("tests/cuda_on_cpu/test_s4d_kernels.py::test_edges[fast-modes]",)),
    Mutant("gradient of a decay not conjugated", "triton", f"{KERNELS}/s4d.py",
           "q_im * before_re - q_re * before_im", "q_im * before_re + q_re * before_im",
           selected("tests/triton/interpreted/test_others.py", "test_s4d_in_each")),

    Mutant("sums of the last run dropped", "cpu", "csrc/cpu/s4d_backward.h",
           "  end_run(dc_re, dc_im, w.dweight);\n}", "}", in_kernels("s4d", "float32")),
)  # fmt: skip
