"""Compiles the CUDA kernels as C++ for the emulator.

`harness(mode)` is the Python module that calls the launchers of csrc/cuda; `library` is what it is linked with, kernels
and the emulator. Modes:

    fast  optimised, for this processor
    asan  AddressSanitizer and UndefinedBehaviorSanitizer; the process must have `sanitizer_environment()`
    race  instrumented as for ThreadSanitizer, with emulator_races.cpp in the place of its run time

Objects lie under build/cuda_on_cpu and are compiled again only when a source that they include has changed, at most two
at a time. nvcc contracts a * b + c to one rounding, so that is allowed here too.
"""

from __future__ import annotations

import fcntl
import functools
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sysconfig
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
CSRC = ROOT / "csrc"
BUILD = ROOT / "build" / "cuda_on_cpu"
MODES = ("fast", "asan", "race")

# Without unique symbols a process can have the libraries of two modes.
COMMON = ["-std=c++20", "-g1", "-fPIC", "-fno-gnu-unique", "-DSSMVDM_EMULATED", "-D__CUDA_ARCH_LIST__=0"]
COMMON += [f"-ffile-prefix-map={ROOT}/="]
WARNINGS = ["-Wall", "-Wextra", "-Wno-unknown-pragmas", "-Wno-unused-parameter"]
CONTRACTION = ["-mfma", "-ffp-contract=fast", "-fno-math-errno"]
SANITIZERS = ["-fsanitize=address,undefined", "-fno-sanitize=vptr", "-fno-sanitize-recover=all"]
KERNEL_FLAGS = {
    "fast": ["-O2", "-march=native", *CONTRACTION],
    "asan": ["-O1", "-fno-omit-frame-pointer", *SANITIZERS, *CONTRACTION],
    "race": ["-O1", "-fsanitize=thread", "--param=tsan-instrument-func-entry-exit=0", *CONTRACTION],
}
# The machine itself: only AddressSanitizer has to know it, to follow the switches between stacks.
EMULATOR_FLAGS = {"fast": ["-O2"], "asan": ["-O1", "-fsanitize=address"], "race": ["-O2"]}
LINK_FLAGS = {"fast": [], "asan": SANITIZERS, "race": []}


def missing() -> str | None:
    """Why nothing can be compiled here, or None."""
    if shutil.which("g++") is None:
        return "no g++"
    if cuda_include() is None:
        return "no CUDA headers: nvcc was not found"
    return None


@functools.cache
def cuda_include() -> str | None:
    """NVIDIA's headers, from where nvcc itself takes them."""
    nvcc = find_nvcc()
    if nvcc is None:
        return None
    output = subprocess.run([nvcc, "--dryrun", "-c", "any.cu"], capture_output=True, text=True)
    folders = re.findall(r'"-I([^"]+)"', output.stdout + output.stderr)
    return next((folder for folder in folders if (Path(folder) / "cuda_runtime.h").exists()), None)


def find_nvcc() -> str | None:
    """As the build of the package finds it."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        return shutil.which("nvcc", path=str(Path(home) / "bin"))
    return shutil.which("nvcc") or shutil.which("nvcc", path="/usr/local/cuda/bin")


def kernel_sources(kernel: str = "") -> list[Path]:
    """CUDA sources of the package; of one kernel, scan | s4d | conv, those that its name begins."""
    return sorted((CSRC / "cuda").glob(f"{kernel}*.cu"))


def library(mode: str, sources: list[Path], name: str) -> Path:
    """The shared library of some .cu files, with the emulator in it."""
    flags = [*COMMON, *WARNINGS, *includes(), *KERNEL_FLAGS[mode]]
    parts = ("cuda_emulator", "emulator_runtime", *(("emulator_races",) if mode == "race" else ()))
    machine = [HERE / f"{part}.cpp" for part in parts]
    jobs = [(source, flags) for source in sources]
    jobs += [(source, [*COMMON, *WARNINGS, *includes(), *EMULATOR_FLAGS[mode]]) for source in machine]
    return linked(mode, f"lib{name}_{mode}.so", jobs, ["-Wl,-Bsymbolic", *LINK_FLAGS[mode]])


def module(mode: str, source: Path, kernels: Path) -> Path:
    """A Python module compiled against a library of kernels."""
    import pybind11

    python = ["-I", sysconfig.get_paths()["include"], "-I", pybind11.get_include(), "-fvisibility=hidden"]
    flags = [*COMMON, *WARNINGS, *includes(), *EMULATOR_FLAGS[mode], *python]
    link = ["-Wl,-rpath,$ORIGIN", "-L", str(kernels.parent), f"-l:{kernels.name}"]
    return linked(mode, f"_{source.stem}_{kernels.stem}.so", [(source, flags)], [*link, *LINK_FLAGS[mode]])


def harness_path(mode: str, kernel: str = "") -> Path:
    """The module that calls launchers. With one kernel's name only that is compiled, and others raise RuntimeError."""
    return module(mode, HERE / "harness.cpp", library(mode, kernel_sources(kernel), kernel or "kernels"))


@functools.cache
def harness(mode: str, kernel: str = "") -> ModuleType:
    """That module, imported; where `mode` is asan only in a process that has `sanitizer_environment()`."""
    # pybind11 takes modules of one full name for one module.
    return load_module(f"{mode}_{kernel}._harness", harness_path(mode, kernel))


def load_module(name: str, path: Path) -> ModuleType:
    """Import a compiled module from where it is."""
    spec = importlib.util.spec_from_file_location(name, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def sanitizer_environment() -> dict[str, str]:
    """What a process needs that loads a library compiled with AddressSanitizer.

    Python's own leaks are no concern, and stacks of threads that were given up cannot be followed.
    """
    library = subprocess.run(["g++", "-print-file-name=libasan.so"], capture_output=True, text=True, check=True)
    options = "detect_leaks=0:detect_stack_use_after_return=0:abort_on_error=0:allocator_may_return_null=1"
    return {
        "LD_PRELOAD": library.stdout.strip(),
        "ASAN_OPTIONS": options,
        "UBSAN_OPTIONS": "print_stacktrace=1",
        "PYTHONMALLOC": "malloc",
    }


# -- compiling ---------------------------------------------------------------------------------------------------------


def includes() -> list[str]:
    return ["-I", str(CSRC), "-I", str(HERE), "-isystem", str(cuda_include())]


def linked(mode: str, name: str, jobs: list[tuple[Path, list[str]]], flags: list[str]) -> Path:
    """Compile what has changed and link it."""
    folder = BUILD / mode
    target = folder / name
    with one_build_at_a_time(folder):
        with ThreadPoolExecutor(2) as pool:
            objects = list(pool.map(lambda job: compiled(folder, *job), jobs))
        command = ["g++", "-shared", *map(str, objects), *flags, "-ldl", "-o"]
        stamp = target.with_suffix(".command")
        newest = max(path.stat().st_mtime_ns for path in objects)
        is_fresh = target.exists() and target.stat().st_mtime_ns >= newest and read(stamp) == " ".join(command)
        if not is_fresh:
            target.unlink(missing_ok=True)  # never overwritten: a process may have it mapped
            run([*command, str(target)])
            stamp.write_text(" ".join(command))
    return target


def compiled(folder: Path, source: Path, flags: list[str]) -> Path:
    """The object of one source; old ones stay while nothing that they include is newer."""
    command = ["g++", *flags, "-x", "c++", "-c", str(source)]
    key = hashlib.sha256(" ".join(command).encode()).hexdigest()[:8]
    target = folder / f"{source.stem}-{key}.o"
    dependencies = target.with_suffix(".d")
    if not (target.exists() and is_newer(target, dependencies)):
        run([*command, "-MMD", "-MF", str(dependencies), "-o", str(target)])
    return target


def is_newer(target: Path, dependencies: Path) -> bool:
    """Than every file that its compilation read."""
    names = read(dependencies).replace("\\\n", " ").split()[1:]
    paths = [Path(name) for name in names]
    time = target.stat().st_mtime_ns
    return bool(paths) and all(path.exists() and path.stat().st_mtime_ns < time for path in paths)


def read(path: Path) -> str:
    return path.read_text() if path.exists() else ""


def run(command: list[str]) -> None:
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        raise RuntimeError(f"{' '.join(command)}\n{result.stderr}")


@contextmanager
def one_build_at_a_time(folder: Path) -> Iterator[None]:
    """Of several processes that want the same library, the others wait."""
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / "lock", "w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield
