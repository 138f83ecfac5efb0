"""python -m tests.cuda_on_cpu.faults LIBRARY FIRST: the kernels of faults.cu, one line each with what was noticed.

`verdicts` runs it and goes on behind a fault that ends the process.
"""

from __future__ import annotations

import ctypes
import json
import os
import subprocess
import sys

from . import build
from .worker import summary


def verdicts(mode: str) -> dict[tuple[str, bool], str]:
    """(name, is wrong) -> what this build says of it; "": nothing."""
    library = build.library(mode, [build.HERE / "faults.cu"], "faults")
    environment = os.environ | (build.sanitizer_environment() if mode == "asan" else {})
    names = fault_names(build.library("fast", [build.HERE / "faults.cu"], "faults"))
    wanted = [(name, is_wrong) for name in names for is_wrong in (False, True)]
    found: list[str] = []
    while len(found) < len(wanted):
        command = [sys.executable, "-m", __name__, str(library), str(len(found))]
        result = subprocess.run(command, cwd=build.ROOT, env=environment, capture_output=True, text=True)
        found += [json.loads(line) for line in result.stdout.splitlines()]
        if len(found) < len(wanted):
            found.append(summary(result.stderr) or f"the process ended with {result.returncode}")
    return dict(zip(wanted, found, strict=True))


def fault_names(library) -> list[str]:
    code = open_library(library)
    names: list[str] = []
    while (name := code.ssmvdm_fault_name(len(names))) is not None:
        names.append(name.decode())
    return names


def open_library(path) -> ctypes.CDLL:
    code = ctypes.CDLL(str(path))
    code.ssmvdm_fault_name.restype = code.ssmvdm_run_fault.restype = ctypes.c_char_p
    code.ssmvdm_run_fault.argtypes = [ctypes.c_int, ctypes.c_bool]
    return code


def main(path: str, first: int) -> None:
    code = open_library(path)
    for run in range(first, 2 * len(fault_names(path))):
        print(json.dumps(code.ssmvdm_run_fault(run // 2, bool(run % 2)).decode()), flush=True)


if __name__ == "__main__":
    main(sys.argv[1], int(sys.argv[2]))
