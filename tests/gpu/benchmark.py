"""python -m tests.gpu.benchmark: `ssmvdm bench scan --device cuda` where the command line's packages are not installed.

--out FOLDER      for the results
--mamba FOLDER    mamba-ssm's compiled kernels
--seconds N       the whole run ends by then; the shape that the kernels are tuned for, at three lengths. Without: all
                  shapes, at length
--device cpu      the same way with the CPU kernels: what can be tried without a GPU
"""

from __future__ import annotations

import argparse
import json
import sys
from dataclasses import replace
from pathlib import Path

from benchmarks import runner
from benchmarks.kernels.scan_options import ScanOptions
from ssmvdm.errors import InputError

TUNED = ("4096x16x224", "4096x64x224", "4096x256x224")


def main(arguments: list[str] | None = None) -> int:
    """0 if everything of ours passed its gate and was measured."""
    parser = argparse.ArgumentParser(prog="python -m tests.gpu.benchmark", description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path)
    parser.add_argument("--mamba", type=Path)
    parser.add_argument("--seconds", type=float)
    parser.add_argument("--device", default="cuda")
    parser.add_argument("--shapes", nargs="+", default=TUNED)
    given = parser.parse_args(arguments)
    options = ScanOptions(out=given.out, device=given.device, mamba=given.mamba, compiled_length=16, budget_seconds=4.0)
    if given.seconds:
        options = replace(options, time_limit=given.seconds, shapes=tuple(given.shapes), budget_seconds=1.5)
    try:
        options.check()
        folder = options.folder()
        runner.run({"scan": options}, options, "scan")
    except InputError as error:
        print(error, file=sys.stderr)
        return 2
    rows = json.loads((folder / "scan.json").read_text())["times"]
    ours = [row["status"] for row in rows if row["is_ours"]]
    return 0 if ours and set(ours) == {"ok"} else 1


if __name__ == "__main__":
    sys.exit(main())
