"""python -m tests.gpu.benchmark: `ssmvdm bench all --device cuda` where the command line's packages are not installed.

--out FOLDER      for the results
--mamba FOLDER    mamba-ssm's compiled kernels
--seconds N       the scan alone, at the shapes that the kernels are tuned for, which ends by then; without, everything
                  at length
--parts NAME ...  of that: scan, layers, memory
--resume          go on where a run into the same folder was stopped
--device cpu      the same way without a GPU
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks import runner
from benchmarks.kernels.scan_options import ScanOptions
from benchmarks.layers.options import LayerOptions
from benchmarks.models.options import MemoryOptions
from benchmarks.options import RunOptions
from ssmvdm.errors import InputError


def main(arguments: list[str] | None = None) -> int:
    """0 if every scan of ours, where the scan takes part, passed its gate and was measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--mamba", type=Path)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--parts", nargs="+", choices=list(runner.MEASURING), default=list(runner.MEASURING))
    parser.add_argument("--resume", action="store_true")
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args(arguments)
    parts: dict[str, RunOptions]
    if given.seconds is not None:
        parts = {"scan": replace(ScanOptions.quick(given.device), mamba=given.mamba, time_limit=given.seconds)}
    else:
        parts = {"scan": replace(ScanOptions.full(given.device), mamba=given.mamba),
                 "layers": LayerOptions.full(given.device), "memory": MemoryOptions.full(given.device)}  # fmt: skip
        parts = {name: options for name, options in parts.items() if name in given.parts}
    how = RunOptions(device=given.device, out=given.out, resume=given.resume)
    try:
        for options in parts.values():
            options.check()
        folder = how.folder("" if given.seconds is None else "test-gpu")
        runner.run(parts, how, "report" if len(parts) > 1 else next(iter(parts)), folder)
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    if "scan" not in parts:
        return 0
    rows = json.loads((folder / "scan.json").read_text())["times"]
    ours = [row["status"] for row in rows if row["is_ours"]]
    return 0 if ours and set(ours) == {"ok"} else 1


if __name__ == "__main__":
    sys.exit(main())
