"""What came out of each mutant, kept in results.json and shown in table.md."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path

from .planted import MUTANTS, TARGETS, Mutant
from .workshop import Verdict

HERE = Path(__file__).parent
RESULTS, TABLE = HERE / "results.json", HERE / "table.md"


def digest(mutant: Mutant) -> str:
    """Of what is planted: a result belongs to no other."""
    text = "\0".join((mutant.path, mutant.before, mutant.after))
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def load() -> dict[str, dict]:
    """Results by the mutant's name."""
    return json.loads(RESULTS.read_text(encoding="utf-8")) if RESULTS.exists() else {}


def record(mutant: Mutant, verdict: Verdict, date: str) -> None:
    """One more result; those of mutants that are no longer planted go."""
    known = {planted.name for planted in MUTANTS}
    results = {name: entry for name, entry in load().items() if name in known}
    results[mutant.name] = {
        "digest": digest(mutant), "outcome": verdict.outcome, "by": verdict.by, "seconds": verdict.seconds, "date": date
    }  # fmt: skip
    RESULTS.write_text(json.dumps(results, indent=1, sort_keys=True) + "\n", encoding="utf-8")
    TABLE.write_text(page(results), encoding="utf-8")


def page(results: dict[str, dict]) -> str:
    bugs = list(dict.fromkeys(mutant.bug for mutant in MUTANTS))
    lines = [
        "# Mutants", "",
        "`make mutants` plants each of these bugs, builds, and runs the tests that have to see it; without the mutant "
        "they pass. Seconds are those of the run on the day that is named, build and tests.", "",
        "| bug | in | outcome | first test that fails | seconds | date |", "|---|---|---|---|--:|---|",
    ]  # fmt: skip
    for mutant in sorted(MUTANTS, key=lambda m: (bugs.index(m.bug), TARGETS.index(m.target))):
        entry = results.get(mutant.name)
        cells = [mutant.bug, f"{mutant.target}, `{mutant.path}`"]
        if entry is None or entry["digest"] != digest(mutant):
            cells += ["not run", "", "", ""]
        else:
            cells += [
                entry["outcome"],
                f"`{entry['by']}`".replace("|", "\\|"),
                f"{entry['seconds']:.0f}",
                entry["date"],
            ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, ""])
