"""python -m tests.cuda_on_cpu.run scan: the edge shapes of a kernel through its emulated CUDA code."""

from __future__ import annotations

import argparse
import dataclasses
import sys
from collections.abc import Iterator

from . import build, calls, suite, worker


def outcomes(options: argparse.Namespace) -> Iterator[tuple[suite.Check, calls.Outcome]]:
    """Of all cases that are asked for."""
    checks = [asked_for(check, options) for check in suite.edges(options.kernel) if options.k in check.job.name]
    if options.mode == "fast":
        harness = build.harness(options.mode, options.kernel)
        yield from ((check, calls.run(harness, check.job)) for check in checks)
    else:
        jobs = [check.job for check in checks]
        yield from zip(checks, worker.run_elsewhere(options.mode, options.kernel, jobs), strict=True)


def asked_for(check: suite.Check, options: argparse.Namespace) -> suite.Check:
    """The case on the machine of the options, with or without its gradients."""
    without = {"dy": None, "dy_b": None, "dlast": None} if options.forward else {}
    job = dataclasses.replace(check.job, inputs=check.job.inputs | without)
    machine = calls.Machine(order=options.order, seed=options.seed, exact=options.exact)
    return dataclasses.replace(check, job=job).on(machine)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("kernel", choices=sorted(calls.KERNELS))
    parser.add_argument("--mode", choices=build.MODES, default="fast")
    parser.add_argument("--order", choices=("forward", "reverse", "random"), default="forward")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--exact", action="store_true", help="approximate functions exact, not as wrong as may be")
    parser.add_argument("--forward", action="store_true", help="without the backward kernels")
    parser.add_argument("-k", metavar="TEXT", default="", help="only cases whose name has this in it")
    options = parser.parse_args()
    failed = count = 0
    for check, outcome in outcomes(options):
        problems = check.problems(outcome)
        failed, count = failed + bool(problems), count + 1
        print("FAIL" if problems else "ok  ", check.job.name, flush=True)
        for problem in problems:
            print("       ", problem)
    print(f"{failed} of {count} failed")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
