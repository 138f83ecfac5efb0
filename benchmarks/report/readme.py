"""The measured passages of README.md, written from result files: `make readme` or `python -m benchmarks.report.readme`.

A passage stands between `<!-- numbers: NAME -->` and `<!-- end of numbers -->`. It is a function of the results in the
folder that the first passage, the picture, points to; another folder can be named. Everything else in the file stays.
"""

import json
import re
import sys
import textwrap
from collections.abc import Callable
from pathlib import Path
from statistics import mean, median, stdev

from benchmarks.kernels.shapes import MODES
from ssmvdm.compared import LAYER_NAMES, layer_named
from ssmvdm.process_memory import MIB
from ssmvdm.report.environment import busy_warning, machine

README = Path(__file__).resolve().parents[2] / "README.md"
BLOCK = re.compile(r"<!-- numbers: (?P<name>[a-z]+) -->\n.*?<!-- end of numbers -->", re.DOTALL)
FOLDER = re.compile(r'srcset="(?P<folder>[^"]+)/memory-dark\.svg"')
SCAN = "base"  # the shape whose numbers are told


class Results:
    """Result files of a folder, read when they are needed. name: of the folder, as the README links to it."""

    def __init__(self, name: str, root: Path = README.parent):
        self.name, self._root = name, root

    def __call__(self, kind: str) -> dict:
        return json.loads((self._root / self.name / f"{kind}.json").read_text(encoding="utf-8"))

    def link(self, text: str, *files: str) -> str:
        """To the first of the files that is there, the last one if none is."""
        found = [file for file in files if (self._root / self.name / file).exists()]
        return f"[{text}]({self.name}/{(found or files[-1:])[0]})"


def rewritten(text: str, results: Results) -> str:
    """The README's text with every passage written anew; ValueError naming passages that it lacks or nobody knows."""
    found = [match["name"] for match in BLOCK.finditer(text)]
    if sorted(found) != sorted(PASSAGES):
        raise ValueError(f"README.md: expected the passages {', '.join(PASSAGES)}, got {', '.join(found) or 'none'}")
    return BLOCK.sub(lambda match: block(match["name"], results), text)


def block(name: str, results: Results) -> str:
    return f"<!-- numbers: {name} -->\n{PASSAGES[name](results)}\n<!-- end of numbers -->"


def folder_of(text: str) -> str:
    """The folder of results that the README shows."""
    match = FOLDER.search(text)
    if match is None:
        raise ValueError("README.md: expected a picture memory-dark.svg in a folder of results, found none")
    return match["folder"]


def _prose(*sentences: str) -> str:
    return textwrap.fill(" ".join(sentences), 120, break_long_words=False, break_on_hyphens=False)


def _where(result: dict) -> str:
    found = result["environment"]
    beside = ", beside other work" if busy_warning(found) else ""
    return f"{machine(found)}, torch {found['torch']}, {found['date'][:10]}{beside}"


def picture(results: Results) -> str:
    label = (
        "Peak memory and speed of a training step, and bytes saved for backward, against the number of frames, for "
        "attention, linear attention, S4D and S6"
    )
    return "\n".join(
        [
            "<picture>",
            f'  <source media="(prefers-color-scheme: dark)" srcset="{results.name}/memory-dark.svg">',
            f'  <img alt="{label}" src="{results.name}/memory-light.svg">',
            "</picture>",
        ]
    )


def training(results: Results) -> str:
    """Time and memory of a step at the greatest number of frames that all of these layers have been trained at."""
    result = results("memory")
    names = {
        "bi-s6": "with bi-S6",
        "attention-einsum": "with the published attention",
        "attention-sdpa": "with fused attention",
        "linear-attention": "with linear attention",
        "bi-s4d": "with bi-S4D",
    }
    rows = {(row["layer"], row["frames"]): row for row in result["training"] if row["status"] == "ok"}
    frames = max(count for _, count in rows if all((name, count) in rows for name in names))

    def told(name: str) -> str:
        row = rows[name, frames]
        return f"{median(row['step_seconds']):.2f} s and {median(row['peak_bytes']) / MIB:.0f} MiB"

    steps = ", ".join(f"{label} {told(name)}" for name, label in names.items())
    report = results.link("report", "report.html", "memory.html")
    return _prose(
        f"At {frames} frames a step takes {steps}. {_where(result)}; all numbers in "
        f"{results.link('memory.csv', 'memory.csv')} and the {report}."
    )


def lean(results: Results) -> str:
    """The layer to which lean memory costs most."""
    rows = [row for row in results("memory")["modes"] if row["status"] == "ok"]
    worst = max(rows, key=lambda row: row["ratio"])
    return _prose(
        f'A training step is at most {worst["ratio"]:.2f} times as long with `"lean"` as with `"fast"`, for any layer '
        f"({worst['frames']} frames, small network, measured in turns; see the report)."
    )


def scan(results: Results) -> str:
    result = results("scan")
    if SCAN not in result["settings"]["shapes"]:
        raise ValueError(f"{results.name}/scan.json: expected results at the shape {SCAN!r}, as of bench all --full")
    sizes = result["settings"]["shapes"][SCAN]
    rows = {
        (row["name"], row["mode"]): row for row in result["times"] if row["shape"] == SCAN and row["status"] == "ok"
    }
    base = result["settings"]["base"]
    ours = [rows[base, mode] for mode in MODES]
    shares = [f"{100 * row['shares_of_floor']['exponentials']:.0f} %" for row in ours]

    def ratios(name: str) -> str:
        return " and ".join(f"{rows[name, mode]['ratio']:.3g}" for mode in MODES)

    is_scaled = any(rows["eager", mode]["timed_sequences"] < sizes["sequences"] for mode in MODES)
    return _prose(
        f"{_where(result)}, {sizes['sequences']} sequences of {sizes['length']} frames, {sizes['channels']} channels, "
        f"{sizes['states']} states: {shares[0]} forward and {shares[1]} backward of what the vector units could do at "
        f"most. Forward and with backward, the eager mathematics takes {ratios('eager')} times as long"
        + (" (timed on fewer sequences, and extrapolated)" if is_scaled else "")
        + f", attention with 8 heads of 64 {ratios('sdpa-8x64')} times, attention of equal width "
        f"{ratios('sdpa-equal')} times. {_s4d(result)} All numbers: {results.link('scan.md', 'scan.md')}."
    )


def _s4d(result: dict) -> str:
    """The two forms of S4D over all shapes that have both: least and greatest ratio."""
    seconds = {
        (row["shape"], row["mode"], row["name"]): median(row["seconds"])
        for row in result["times"]
        if row["status"] == "ok"
    }
    spans, lengths = [], set()
    for mode in MODES:
        pairs = {
            shape: seconds[shape, mode, "s4d-fft"] / seconds[shape, mode, "s4d-scan"]
            for shape in result["settings"]["shapes"]
            if (shape, mode, "s4d-fft") in seconds and (shape, mode, "s4d-scan") in seconds
        }
        spans.append(f"{min(pairs.values()):.1f} to {max(pairs.values()):.1f}")
        lengths |= {result["settings"]["shapes"][shape]["length"] for shape in pairs}
    peaks = {
        row["name"]: row["peak_bytes"] for row in result["memory"] if row["shape"] == SCAN and row["status"] == "ok"
    }
    return (
        f"S4D with 64 states takes {100 * peaks['s4d-scan'] / peaks['s4d-fft']:.0f} % of the memory of its FFT form, "
        f"and is {spans[0]} times as fast forward and {spans[1]} times with backward, from {min(lengths)} to "
        f"{max(lengths)} frames."
    )


def reproduce(results: Results) -> str:
    result = results("reproduce")
    study, losses = result["study"], {}
    for row in result["training"]:
        losses.setdefault(row["layer"], []).append(row["held_out"]["all"])
    ordered = sorted(losses, key=lambda name: mean(losses[name]))
    told = ", ".join(f"{_plain(name)} {mean(losses[name]):.4f} ± {stdev(losses[name]):.4f}" for name in ordered)
    parameters = mean(row["parameters"] for row in result["training"])
    kept = {(row["layer"], row["frames"]): row["saved_bytes"] for row in result["costs"]}
    short, long = min(frames for _, frames in kept), max(frames for _, frames in kept)

    def times(name: str) -> str:
        return " and ".join(f"{kept[name, frames] / kept['bi-s6', frames]:.2f}" for frames in (short, long))

    return _prose(
        f"{_where(result)} ({study['steps']} steps, {study['frames']} frames of "
        f"{study['network']['size']}×{study['network']['size']}, {parameters / 1e6:.2f} M parameters each, "
        f"{study['seeds']} seeds): held-out loss {told}. {_verdicts(result, 'held-out loss')} "
        f"{_verdicts(result, 'Frechet distance')} For backward, bi-S6 keeps {kept['bi-s6', short] / MIB:.0f} MiB at "
        f"{short} frames and {kept['bi-s6', long] / MIB:.0f} at {long}, attention {times('attention-sdpa')} times and "
        f"linear attention {times('linear-attention')} times as much. Runs this short say little about long training. "
        f"All tables: {results.link('reproduce.md', 'reproduce.md')}."
    )


def equal_memory(results: Results) -> str:
    result = results("equal-memory")
    findings = [finding for conclusion in result["conclusions"] for finding in conclusion["findings"]]
    told = []
    for quantity in dict.fromkeys(finding["quantity"] for finding in findings):
        parts = [_at_equal_memory(finding) for finding in findings if finding["quantity"] == quantity]
        told.append(f"By {quantity} bi-S6 is {'; '.join(parts)}.")
    widths = ", ".join(map(str, result["base_channels"]))
    table = results.link("equal-memory.md", "equal-memory.md")
    return _prose(f"{_where(result)}, base widths {widths}, else as above. {' '.join(told)} All tables: {table}.")


def _at_equal_memory(finding: dict) -> str:
    against = finding["against"]
    for name in LAYER_NAMES:
        against = against.replace(layer_named(name).label, _plain(name))
    word = {"better": "better than", "worse": "worse than", "undecided": "undecided against"}[finding["verdict"]]
    return f"at base width {finding['base_channels']} {word} {against} ({abs(finding['mean']):.1%})"


def _plain(name: str) -> str:
    """bi-S6 and not bi-S6, fused scan (ours)."""
    return layer_named(name).label.partition(",")[0].removesuffix(" (ours)")


def _verdicts(result: dict, quantity: str) -> str:
    """What bi-S6 is better and worse than by that quantity, and what these runs leave open."""
    by_verdict: dict[str, list[str]] = {}
    for comparison in result["conclusions"]:
        for finding in comparison["findings"]:
            if finding["quantity"] == quantity:
                by_verdict.setdefault(finding["verdict"], []).append(
                    f"{_plain(comparison['theirs'])} ({abs(finding['mean']):.1%})"
                )
    parts = [f"{word} than {', '.join(by_verdict[word])}" for word in ("better", "worse") if word in by_verdict]
    if "undecided" in by_verdict:
        parts.append(f"undecided against {', '.join(by_verdict['undecided'])}")
    return f"By {quantity} bi-S6 is {'; '.join(parts)}."


PASSAGES: dict[str, Callable[[Results], str]] = {
    "picture": picture, "training": training, "lean": lean, "reproduce": reproduce, "equal": equal_memory,
    "scan": scan,
}  # fmt: skip


def main(arguments: list[str]) -> None:
    """arguments: the folder of results, relative to the README; without, the one it shows."""
    text = README.read_text(encoding="utf-8")
    try:
        new = rewritten(text, Results(arguments[0] if arguments else folder_of(text)))
    except (OSError, ValueError) as error:
        sys.exit(f"README.md stays as it is: {error}")
    README.write_text(new, encoding="utf-8")


if __name__ == "__main__":
    main(sys.argv[1:])
