"""python -m tests.mutants [words]: plant the mutants whose names have all of the words, and say who sees them."""

from __future__ import annotations

import argparse
import datetime
import sys

from . import table
from .planted import MUTANTS, TARGETS
from .workshop import Workshop


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.mutants", description=__doc__)
    parser.add_argument("words", nargs="*", help="such as cuda, or barrier; none: all mutants")
    words = parser.parse_args().words
    chosen = [mutant for mutant in MUTANTS if all(word in mutant.name for word in words)]
    if not chosen:
        parser.error(f"no mutant has {' and '.join(words)} in its name")
    workshop, alive = Workshop(), 0
    for mutant in sorted(chosen, key=lambda mutant: TARGETS.index(mutant.target)):
        verdict = workshop.judge(mutant)
        alive += verdict.outcome != "killed"
        print(f"{verdict.outcome:15} {verdict.seconds:6.1f} s  {mutant.name}: {verdict.by}", flush=True)
        table.record(mutant, verdict, datetime.datetime.now(datetime.timezone.utc).date().isoformat())
    print(f"{len(chosen) - alive} of {len(chosen)} killed")
    return int(alive > 0)


if __name__ == "__main__":
    sys.exit(main())
