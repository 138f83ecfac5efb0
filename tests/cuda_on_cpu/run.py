"""python -m tests.cuda_on_cpu.run scan: the edge shapes of a kernel through its emulated CUDA code."""

from __future__ import annotations

import argparse
import dataclasses
import sys
import time

from . import build, calls, suite


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kernel", choices=sorted(calls.KERNELS))
    parser.add_argument("--mode", choices=build.MODES, default="fast")
    parser.add_argument("--order", choices=("forward", "reverse", "random"), default="forward")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--forward", action="store_true", help="without the backward kernels")
    parser.add_argument("-k", metavar="TEXT", default="", help="only cases whose name has this in it")
    options = parser.parse_args()
    harness = build.harness(options.mode)
    failed = count = 0
    for check in suite.edges(options.kernel):
        if options.k not in check.job.name:
            continue
        machine = dataclasses.replace(check.job.machine, order=options.order, seed=options.seed)
        job = dataclasses.replace(check.job, machine=machine)
        if options.forward:
            job = dataclasses.replace(job, inputs=job.inputs | {"dy": None, "dy_b": None, "dlast": None})
        start = time.perf_counter()
        outcome = calls.run(harness, job)
        seconds = time.perf_counter() - start
        problems = check.problems(outcome)
        failed, count = failed + bool(problems), count + 1
        print("FAIL" if problems else "ok  ", f"{seconds:6.2f} s ", check.job.name, flush=True)
        for problem in problems:
            print("       ", problem)
    print(f"{failed} of {count} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
