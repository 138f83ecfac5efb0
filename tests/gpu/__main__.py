"""python -m tests.gpu [stage ...]: build for the GPU that is here, test, sanitize, benchmark. In ten minutes at most.

Needs no network and installs nothing. Every stage has a time limit and the rest go on whatever becomes of it; the exit
status is 0 only if none failed and something ran. What became of all of them is in test-gpu.json beside the results of
the benchmark. Of the cases on Triton, which compiles for minutes, it takes some: `python -m pytest tests/kernels -k
triton` takes all.

--out FOLDER       for the results; default: benchmarks/results/<device>/test-gpu
--mamba ARCHIVE    mamba-ssm's source distribution, to compare with; MAMBA_SDIST does the same
--list             the stages and their limits
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import os
import shutil
import subprocess
import sys
import threading
from pathlib import Path

import torch

from benchmarks.measure import gpu_device
from benchmarks.options import device_folder

from . import deadline
from .stages import Outcome, Phase, Stage, longest_s, python, run_phases

ROOT = Path(__file__).resolve().parents[2]
WORK = ROOT / "build" / "test-gpu"
TOOLS = ("memcheck", "racecheck", "initcheck", "synccheck")
TOTAL_S = 580.0
STOP_S = 15.0  # before the limit
NO_DEVICE = "PyTorch finds no CUDA device."
# Triton compiles each set of options and kind of strides for a second or two: of its 1300 kernels these need a quarter.
TRITON_CASES = (
    "core or layouts or without_lanes or median or run_to_run or adjoint or strong_decay or nan_and_infinity "
    "or gradient_of_a_sum or earlier_calls or opcheck or (test_conv and 130) "
    "or (test_s4d and (odd or half or nan or empty or expanded))"
)
SANITIZER_REFUSES = r"Device not supported|device is not supported"


def phases(out: Path, archive: Path | None) -> list[Phase]:
    """All stages. Their limits leave the later ones their time."""
    no_device = None if torch.cuda.is_available() else NO_DEVICE
    capability = ".".join(map(str, torch.cuda.get_device_capability())) if no_device is None else ""
    mamba = WORK / "mamba"
    return [
        ((build_stage(capability, no_device),), (rival_stage(archive, mamba, no_device),)),
        (
            (
                check_stage(no_device),
                kernel_tests("cuda", "cuda", no_device),
                kernel_tests("triton", f"triton and ({TRITON_CASES})", no_device),
            ),
            (
                pytest_stage("runtime", 80, no_device, "tests/gpu", "-m", "gpu"),
                sanitizer_stage("memcheck", 50, no_device, "--seconds", "20"),
                *(sanitizer_stage(tool, 40, no_device, "--seconds", "12", "--backend", "cuda") for tool in TOOLS[1:]),
            ),
            (Stage("compile", python("-m", "tests.gpu.compiled"), 120, obstacle=no_device),),
        ),
        ((benchmark_stage(out, mamba, no_device),),),
    ]


def build_stage(capability: str, obstacle: str | None) -> Stage:
    """The extension in place, for this device alone; a CUDA library that does not compile is a failure."""
    environment = {"FORCE_CUDA": "1", "TORCH_CUDA_ARCH_LIST": capability, "PATH": path_with_ninja()}
    command = python("setup.py", "-q", "build_ext", "--inplace")
    return Stage("build", command, 140, environment, obstacle)


def rival_stage(archive: Path | None, folder: Path, obstacle: str | None) -> Stage:
    if archive is None:
        obstacle = "MAMBA_SDIST names no source distribution of mamba-ssm to compare with."
    elif not archive.is_file():
        obstacle = f"MAMBA_SDIST: there is no file {archive}."
    command = python("-m", "benchmarks.kernels.mamba_ssm_sdist", str(archive), str(folder))
    return Stage("rival", command, 140, {"PATH": path_with_ninja()}, obstacle)


def path_with_ninja() -> str:
    """pip puts it beside the interpreter."""
    return os.pathsep.join((str(Path(sys.executable).parent), os.environ.get("PATH", "")))


def check_stage(obstacle: str | None) -> Stage:
    """Of what is compiled beforehand: Triton would compile for minutes, and its cases have a stage."""
    return Stage("check", python("-m", "ssmvdm_kernels.check", "--backend", "cpu", "cuda"), 45, obstacle=obstacle)


def pytest_stage(name: str, limit_s: float, obstacle: str | None, *arguments: str, **environment: str) -> Stage:
    """It ends by itself before its limit, so that failures are told. A backend that does not run is one."""
    plugins = ("no:cacheprovider", "tests.gpu.deadline", "tests.gpu.accuracy")
    options = (f"--stop-after={limit_s - STOP_S}", *(word for plugin in plugins for word in ("-p", plugin)))
    command = python("-m", "pytest", "-q", *options, *arguments)
    return Stage(name, command, limit_s, {"CI": "1", **environment}, obstacle, {deadline.MESSAGE: "timed out"})


def kernel_tests(backend: str, which: str, obstacle: str | None) -> Stage:
    """Cases of tests/kernels on this backend, on several processes where pytest-xdist is installed."""
    arguments, environment = ["tests/kernels", "-k", which], {}
    if importlib.util.find_spec("xdist") is not None:
        workers = max(1, min(12, (os.cpu_count() or 1) - 2))
        arguments += ["-n", str(workers)]
        environment["OMP_NUM_THREADS"] = "1"
    return pytest_stage(f"{backend} cases", 105, obstacle, *arguments, **environment)


def sanitizer_stage(tool: str, limit_s: float, obstacle: str | None, *options: str) -> Stage:
    """PyTorch's cache of memory is off, so that every tensor has bounds of its own."""
    program = find_sanitizer()
    obstacle = obstacle or (None if program else "compute-sanitizer is not installed (it comes with the CUDA toolkit).")
    command = (program or "compute-sanitizer", "--tool", tool, "--error-exitcode", "9", "--report-api-errors", "no",
               *python("-m", "tests.gpu.sanitized", *options))  # fmt: skip
    return Stage(tool, command, limit_s, {"PYTORCH_NO_CUDA_MEMORY_CACHING": "1"}, obstacle,
                 {SANITIZER_REFUSES: "skipped"})  # fmt: skip


def find_sanitizer() -> str | None:
    homes = [os.environ.get("CUDA_HOME"), os.environ.get("CUDA_PATH"), "/usr/local/cuda"]
    folders = [str(Path(home) / "bin") for home in homes if home]
    return shutil.which("compute-sanitizer") or shutil.which("compute-sanitizer", path=os.pathsep.join(folders))


def benchmark_stage(out: Path, mamba: Path, obstacle: str | None) -> Stage:
    command = python("-m", "tests.gpu.benchmark", "--out", str(out), "--mamba", str(mamba), "--seconds", "140")
    return Stage("benchmark", command, 165, obstacle=obstacle)


def selected(all_phases: list[Phase], names: list[str]) -> list[Phase]:
    """Only the stages of these names, in their order; all of them for none. ValueError for an unknown name."""
    known = [stage.name for phase in all_phases for chain in phase for stage in chain]
    for name in names:
        if name not in known:
            raise ValueError(f"unknown stage {name!r}; expected some of {', '.join(known)}")
    if not names:
        return all_phases
    kept = [
        tuple(tuple(stage for stage in chain if stage.name in names) for chain in phase) for phase in all_phases
    ]  # fmt: skip
    kept = [tuple(chain for chain in phase if chain) for phase in kept]
    return [phase for phase in kept if phase]


def report(outcome: Outcome) -> None:
    print(f"{outcome.status:<10} {outcome.name:<14} {outcome.seconds:6.1f} s  {outcome.detail}", flush=True)
    if not outcome.is_good:
        print("\n".join(f"    {line}" for line in outcome.tail), flush=True)


def main(arguments: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.gpu", description=__doc__.splitlines()[0])
    parser.add_argument("stages", nargs="*")
    parser.add_argument("--out", type=Path)
    parser.add_argument("--mamba", type=Path, default=os.environ.get("MAMBA_SDIST") or None)
    parser.add_argument("--list", action="store_true")
    options = parser.parse_args(arguments)
    os.chdir(ROOT)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    out = (options.out or device_folder(device) / "test-gpu").absolute()
    try:
        chosen = selected(phases(out, options.mamba), options.stages)
    except ValueError as error:
        parser.error(str(error))
    if options.list:
        for stage in (stage for phase in chosen for chain in phase for stage in chain):
            print(f"{stage.name:<14} {stage.limit_s:4.0f} s at most")
        print(f"{'together':<14} {longest_s(chosen):4.0f} s at most, side by side where that is possible")
        return 0
    return run(chosen, None if options.stages or device != "cuda" else out, device)


def run(chosen: list[Phase], out: Path | None, device: str) -> int:
    """Run, print and write after every stage what is known by then, unless there is no folder for it."""
    environment = gpu_device.describe(device)
    print(gpu_device.one_line(environment), flush=True)
    noted: list[Outcome] = []
    lock = threading.Lock()

    def note(outcome: Outcome) -> None:
        with lock:
            noted.append(outcome)
            if outcome.name == "build":  # this process has loaded what was there before it
                environment["backends"] = backends_here()
            report(outcome)
            if out is not None:
                write(environment, noted, out)

    outcomes = run_phases(chosen, WORK, note, TOTAL_S)
    failed = [outcome.name for outcome in outcomes if not outcome.is_good]
    if all(outcome.status == "skipped" for outcome in outcomes):
        print("Nothing was tested.")
        return 1
    print(f"FAILED: {', '.join(failed)}" if failed else "No stage failed.")
    return 1 if failed else 0


def backends_here() -> list[str]:
    """Those that a new process finds."""
    program = python("-c", "import ssmvdm_kernels; print(*ssmvdm_kernels.available_backends())")
    return subprocess.run(program, capture_output=True, text=True).stdout.split()


def write(environment: dict, outcomes: list[Outcome], out: Path) -> None:
    out.mkdir(parents=True, exist_ok=True)
    found = {"schema": 1, "kind": "test-gpu", "environment": environment,
             "passed": all(outcome.is_good for outcome in outcomes),
             "stages": [outcome.as_json() for outcome in outcomes]}  # fmt: skip
    draft = out / ".test-gpu.json"
    draft.write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
    draft.replace(out / "test-gpu.json")


if __name__ == "__main__":
    sys.exit(main())
