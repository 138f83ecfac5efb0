"""mamba-ssm's own CUDA scan, compiled on the spot from its source distribution: the rival on the GPU.

Nothing of that package is part of this one. Whoever wants the comparison names the archive, which
`pip download --no-deps --no-build-isolation --no-binary :all: mamba-ssm` (with MAMBA_SKIP_CUDA_BUILD=TRUE) fetches:

    python -m benchmarks.kernels.mamba_ssm_sdist ARCHIVE FOLDER   unpack and compile into FOLDER, ahead of a benchmark

Compiled is only what is compared: float32 and bfloat16 storage with real A, for the device's own architecture. The
binding refers to the other kernels too; for these a few lines are written that raise.
"""

import argparse
import importlib.util
import os
import tarfile
from collections.abc import Callable
from functools import cache
from pathlib import Path
from types import ModuleType

import torch
from torch import Tensor

from ssmvdm.errors import InputError

MODULE = "selective_scan_cuda"
SOURCES = "csrc/selective_scan"
NEEDED = ("selective_scan.cpp", "selective_scan.h", "selective_scan_fwd_kernel.cuh", "selective_scan_bwd_kernel.cuh")
COMPILED = {"fp32": "float", "bf16": "at::BFloat16"}  # part of a file name -> storage type
LEFT_OUT = [("at::Half", "float"), *((storage, "complex_t") for storage in ("float", "at::BFloat16", "at::Half"))]
PASSES = {"fwd": "SSMParamsBase", "bwd": "SSMParamsBwd"}
NVCC_FLAGS = [  # those of the package's own build, but for the C++ standard, which is that of the torch headers
    "-O3", "-std=c++20", "-U__CUDA_NO_HALF_OPERATORS__", "-U__CUDA_NO_HALF_CONVERSIONS__",
    "-U__CUDA_NO_BFLOAT16_OPERATORS__", "-U__CUDA_NO_BFLOAT16_CONVERSIONS__", "-U__CUDA_NO_BFLOAT162_OPERATORS__",
    "-U__CUDA_NO_BFLOAT162_CONVERSIONS__", "--expt-relaxed-constexpr", "--expt-extended-lambda", "--use_fast_math",
]  # fmt: skip


def unpack(archive: Path, folder: Path) -> Path:
    """The scan's sources out of the archive, flat in `folder`/source. InputError if this is not such an archive."""
    target = folder / "source"
    target.mkdir(parents=True, exist_ok=True)
    try:
        with tarfile.open(archive) as package:
            for member in package:
                path = Path(member.name)
                if member.isfile() and path.parent.as_posix().endswith("/" + SOURCES):
                    (target / path.name).write_bytes(package.extractfile(member).read())
    except (OSError, tarfile.TarError) as error:
        raise InputError(f"MAMBA_SDIST: cannot read {archive}: {error}") from error
    missing = [name for name in NEEDED if not (target / name).exists()]
    if missing:
        raise InputError(f"MAMBA_SDIST: {archive.name} has no {SOURCES}/{missing[0]}")
    return target


def version(archive: Path) -> str:
    """mamba_ssm-2.3.2.post1.tar.gz -> 2.3.2.post1"""
    return archive.name.removesuffix(".tar.gz").rpartition("-")[2]


def name_in(folder: Path | None) -> str:
    """mamba-ssm, with the version that was compiled into this folder."""
    file = None if folder is None else folder / "version"
    return f"mamba-ssm {file.read_text()}" if file and file.exists() else "mamba-ssm"


def write_instances(source: Path) -> list[Path]:
    """What is to be compiled: the binding, one file per pass and storage type, and one for what is left out."""
    files = [source / "selective_scan.cpp"]
    for stage, parameters in PASSES.items():
        for short, storage in COMPILED.items():
            path = source / f"only_{stage}_{short}.cu"
            _write(path, f'#include "selective_scan_{stage}_kernel.cuh"\n\ntemplate void selective_scan_{stage}_cuda'
                         f"<{storage}, float>({parameters}&, cudaStream_t);\n")  # fmt: skip
            files.append(path)
    lines = ["#include <c10/cuda/CUDAStream.h>", "#include <torch/types.h>", '#include "selective_scan.h"',
             "using complex_t = c10::complex<float>;"]  # fmt: skip
    for stage, parameters in PASSES.items():
        lines += ["template <typename input_t, typename weight_t>",
                  f"void selective_scan_{stage}_cuda({parameters}&, cudaStream_t) {{",
                  '  TORCH_CHECK(false, "these types were not compiled");', "}"]  # fmt: skip
        lines += [f"template void selective_scan_{stage}_cuda<{storage}, {weight}>({parameters}&, cudaStream_t);"
                  for storage, weight in LEFT_OUT]  # fmt: skip
    _write(source / "left_out.cpp", "\n".join(lines) + "\n")
    return [*files, source / "left_out.cpp"]


def _write(path: Path, text: str) -> None:
    """Nothing happens if the file holds this already: what has been compiled stays valid."""
    if not path.exists() or path.read_text() != text:
        path.write_text(text)


def compile_for(architecture: str, archive: Path, folder: Path) -> Path:
    """The compiled module's file; `architecture` as "9.0". Whatever torch's builder raises, if that fails."""
    from torch.utils import cpp_extension

    files = write_instances(unpack(archive, folder))
    built = folder / "built"
    built.mkdir(exist_ok=True)
    (built / "lock").unlink(missing_ok=True)  # what a build that was stopped leaves behind, the next waits for
    os.environ["TORCH_CUDA_ARCH_LIST"] = architecture
    cpp_extension.load(
        MODULE, [str(path) for path in files], extra_cflags=["-O2", "-std=c++20"], extra_cuda_cflags=NVCC_FLAGS,
        build_directory=str(built), is_python_module=False, verbose=True,
    )  # fmt: skip
    (folder / "version").write_text(version(archive))
    return built / f"{MODULE}.so"


def load(folder: Path) -> ModuleType:
    """The module that `compile_for` left in this folder. InputError if there is none that can be loaded."""
    path = folder / "built" / f"{MODULE}.so"
    if not path.exists():
        raise InputError("its kernels were not compiled here (MAMBA_SDIST names its source distribution)")
    spec = importlib.util.spec_from_file_location(MODULE, path)
    try:
        module = importlib.util.module_from_spec(spec)
        spec.loader.exec_module(module)
    except ImportError as error:
        raise InputError(f"its kernels cannot be loaded: {error}") from error
    return module


def scan_in(folder: Path | None) -> Callable[..., Tensor]:
    """`scan_of` what was compiled into this folder, which is loaded at the first call: InputError there."""

    @cache
    def scan() -> Callable[..., Tensor]:
        if folder is None:
            raise InputError("no folder of its compiled kernels was named (--mamba)")
        return scan_of(load(folder))

    return lambda *arguments: scan()(*arguments)


def scan_of(module: ModuleType) -> Callable[..., Tensor]:
    """The causal scan of that module, with its arguments in the order of `eager.selective_scan`, differentiable."""

    class Scan(torch.autograd.Function):
        @staticmethod
        def forward(ctx, u, delta, A, B, C, D, z, delta_bias, delta_softplus):
            B, C = B[:, None], C[:, None]  # one group
            out, states, gated = module.fwd(u, delta, A, B, C, D, z, delta_bias, delta_softplus)
            ctx.save_for_backward(u, delta, A, B, C, D, z, delta_bias, states, out)
            ctx.delta_softplus = delta_softplus
            return gated

        @staticmethod
        def backward(ctx, dy):
            u, delta, A, B, C, D, z, delta_bias, states, out = ctx.saved_tensors
            du, ddelta, dA, dB, dC, dD, dbias, dz = module.bwd(
                u, delta, A, B, C, D, z, delta_bias, dy.contiguous(), states, out, None, ctx.delta_softplus, False
            )
            return du, ddelta, dA, dB[:, 0], dC[:, 0], dD, dz, dbias, None

    return Scan.apply


def main(arguments: list[str] | None = None) -> int:
    name = "python -m benchmarks.kernels.mamba_ssm_sdist"
    parser = argparse.ArgumentParser(prog=name, description=__doc__.splitlines()[0])
    parser.add_argument("archive", type=Path)
    parser.add_argument("folder", type=Path)
    options = parser.parse_args(arguments)
    capability = ".".join(map(str, torch.cuda.get_device_capability()))
    print(f"mamba-ssm {version(options.archive)} for {capability}:",
          compile_for(capability, options.archive, options.folder))  # fmt: skip
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
