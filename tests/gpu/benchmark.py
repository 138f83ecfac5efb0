"""python -m tests.gpu.benchmark: `ssmvdm bench all --device cuda` where the command line's packages are not installed.

--out FOLDER      for the results
--mamba FOLDER    mamba-ssm's compiled kernels
--seconds N       the scan alone, at the shape that the kernels are tuned for, which ends by then; without, everything
                  at length
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
    """0 if every scan of ours passed its gate and was measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--mamba", type=Path)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--device", default="cuda")
    given = parser.parse_args(arguments)
    if given.seconds is not None:
        scan = replace(ScanOptions.quick(given.device), mamba=given.mamba, out=given.out, time_limit=given.seconds)
        parts: dict[str, RunOptions] = {"scan": scan}
    else:
        scan = replace(ScanOptions.full(given.device), mamba=given.mamba, out=given.out)
        others = {"layers": LayerOptions.full(given.device), "memory": MemoryOptions.full(given.device)}
        parts = {"scan": scan, **others}
    try:
        for options in parts.values():
            options.check()
        runner.run(parts, scan, "scan" if len(parts) == 1 else "report")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    rows = json.loads((scan.folder() / "scan.json").read_text())["times"]
    ours = [row["status"] for row in rows if row["is_ours"]]
    return 0 if ours and set(ours) == {"ok"} else 1


if __name__ == "__main__":
    sys.exit(main())
