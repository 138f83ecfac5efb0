"""The C++ CPU kernels compiled with sanitizers, and what runs on them.

    library()   the extension with AddressSanitizer and UndefinedBehaviorSanitizer
    racing()    a program without torch that calls the kernels from several threads, with ThreadSanitizer

python -m tests.kernels.sanitized LIBRARY WORD: the suite's shapes, layouts and options that have WORD in their names,
forward and backward, on such a library, in a process that has `build.sanitizer_environment()`. Memory of torch is
watched too, to the byte: what a kernel reads or writes beside a tensor ends the process.
"""

from __future__ import annotations

import itertools
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path

from tests.cuda_on_cpu import build
from tests.mutants.planted import Mutant

COMMON = ["-std=c++20", "-O1", "-g1", "-fPIC", "-fno-omit-frame-pointer", "-ffp-contract=off", "-Wno-uninitialized"]
DEFINES = ["-DTORCH_TARGET_VERSION=0x020b000000000000", "-DTORCH_STABLE_ONLY"]
CPU = build.CSRC / "cpu"


def missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    if platform.system() != "Linux" or shutil.which("g++") is None:
        return "it needs Linux and g++"
    return None


def library(planted: Mutant | None = None) -> Path:
    """The extension; with a planted bug in its baseline kernels if one is given."""
    from torch.utils import cpp_extension

    flags = [*COMMON, *build.SANITIZERS, *DEFINES, "-I", str(build.CSRC)]
    torch_flags = [flag for folder in cpp_extension.include_paths() for flag in ("-isystem", folder)]
    link = [*build.SANITIZERS, *(flag for folder in cpp_extension.library_paths() for flag in ("-L", folder))]
    link += ["-ltorch_cpu", "-lc10"]
    kernels = sorted(CPU.glob("*.cpp"))
    jobs = [(build.CSRC / "ops.cpp", flags + torch_flags), *((source, flags) for source in kernels)]
    if planted is None:
        return build.linked("cpu_asan", "sanitized.so", jobs, link)
    with tempfile.TemporaryDirectory() as name:
        shutil.copytree(build.CSRC, Path(name) / "csrc")
        planted.plant(Path(name))
        changed = Path(name) / "csrc" / "cpu" / "kernels_baseline.cpp"
        jobs = [(changed if source.name == changed.name else source, options) for source, options in jobs]
        return build.linked("cpu_asan", "planted.so", jobs, link)


def racing() -> Path:
    """The program."""
    flags = [*COMMON, "-fsanitize=thread", "-I", str(build.CSRC)]
    jobs = [(Path(__file__).with_name("racing.cpp"), flags), (CPU / "kernels_baseline.cpp", flags)]
    # -pie undoes the -shared before it: a program, not a library.
    return build.linked("cpu_tsan", "racing", jobs, ["-pie", "-fsanitize=thread"])


# -- in the process that is watched ------------------------------------------------------------------------------------


def calls() -> Iterator[tuple[str, Callable[[], object]]]:
    """Every kernel at its edges, by name."""
    import torch

    from . import cases, test_conv, test_s4d
    from .checks import run_case

    for case in dict.fromkeys((*cases.core(), *cases.layouts(), *cases.sizes(), *cases.classic())):
        yield f"scan {case.name} {case.dtype}", lambda case=case: run_case(case, "cpu")
    for case in test_conv.CASES:
        shape, _, dtype, layout, *_, activation = case

        def convolve(case=case, shape=shape, dtype=dtype, layout=layout, activation=activation):
            dys = tuple(cases.lay_out(torch.randn(shape).to(dtype), layout) for _ in range(2))
            return test_conv.run_conv(test_conv.tensors(*case[:-1], "cpu"), dys, activation, "cpu")

        yield f"conv {case}", convolve
    merges = (*test_s4d.MERGES, "forward", "reverse")
    for shape, merge, dtype, layout in itertools.product(test_s4d.SHAPES, merges, cases.DTYPES, test_s4d.LAYOUTS):
        yield (
            f"s4d {shape} {merge} {dtype} {layout}",
            lambda shape=shape, merge=merge, dtype=dtype, layout=layout: test_s4d.run(
                test_s4d.used(test_s4d.made(shape, dtype, layout), merge), merge, backend="cpu"
            ),
        )


def main(path: str, word: str) -> None:
    """Run them in the place of the installed library, and print how many."""
    import torch

    load = torch.ops.load_library
    torch.ops.load_library = lambda wanted: load(path if Path(wanted).name.startswith("_C.") else wanted)
    torch.set_num_threads(2)
    count = 0
    for name, call in calls():
        if word in name:
            print(name, file=sys.stderr)
            call()
            count += 1
    print(torch.ops.ssmvdm.cpu_capability(), count)


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2])
