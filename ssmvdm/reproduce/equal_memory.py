"""Layers at equal memory: what each of them reaches at several widths, against the bytes it keeps for backward.

At equal parameters a layer gains nothing by keeping less; here it may be wider in return. That is how the paper
compares temporal layers.
"""

import numpy as np

from ssmvdm.process_memory import MIB
from ssmvdm.reproduce.study import REFERENCE
from ssmvdm.reproduce.verdicts import paired_difference, quantities, sentence


def rows_of(results: list[dict]) -> list[dict]:
    """Of studies that differ in the width, in ascending order: {"layer", "base_channels", "parameters", "saved_bytes",
    "values"} for each layer and width. saved_bytes: of a training step of the study; values: quantity -> by seed."""
    rows = []
    for name in results[0]["study"]["contenders"]:
        for result in results:
            study, values = result["study"], quantities(result)
            (cost,) = (row for row in result["costs"] if (row["layer"], row["frames"]) == (name, study["frames"]))
            rows.append(
                {
                    "layer": name,
                    "base_channels": study["network"]["base_channels"],
                    "parameters": next(row["parameters"] for row in result["training"] if row["layer"] == name),
                    "saved_bytes": cost["saved_bytes"],
                    "values": {quantity: by_layer[name] for quantity, by_layer in values.items()},
                }
            )
    return rows


def values_at(rows: list[dict], quantity: str, saved_bytes: float) -> list[float] | None:
    """By seed, what a layer would reach if it kept so many bytes: a straight line between neighbouring widths, over the
    logarithm of bytes. None below its least and above its largest. rows: of that layer, ascending."""
    kept = [row["saved_bytes"] for row in rows]
    if not kept[0] <= saved_bytes <= kept[-1]:
        return None
    by_seed = zip(*(row["values"][quantity] for row in rows), strict=True)
    return [float(np.interp(np.log(saved_bytes), np.log(kept), values)) for values in by_seed]


def comparisons(rows: list[dict], labels: dict[str, str]) -> list[dict]:
    """The reference at each of its widths against every other layer with as much memory; where no width keeps as much,
    its widest network against the narrowest of the other, if that keeps more all the same.

    {"question", "ours", "theirs", "findings", "sentences"} for each, findings as in `verdicts.conclusions` with the
    width and the bytes of ours, and in words against what.
    """
    ours, our_label = _ascending(rows, REFERENCE), labels[REFERENCE]
    told = []
    for name, label in labels.items():
        if name == REFERENCE:
            continue
        theirs = _ascending(rows, name)
        findings = [
            _finding(row, quantity, values, our_label, f"{label} keeping as much, {_mib(row)}")
            for row in ours
            for quantity in row["values"]
            if (values := values_at(theirs, quantity, row["saved_bytes"])) is not None
        ]
        sentences = []
        if not findings:
            sentences = [f"At these widths {our_label} keeps {_span(ours)}, {label} {_span(theirs)}."]
            widest, narrowest = ours[-1], theirs[0]
            if widest["saved_bytes"] < narrowest["saved_bytes"]:
                place = f"{label} at base width {narrowest['base_channels']}, which keeps more, {_mib(narrowest)}"
                findings = [
                    _finding(widest, quantity, values, our_label, place)
                    for quantity, values in narrowest["values"].items()
                ]
        told.append(
            {
                "question": f"How does {our_label} compare with {label} at equal memory?",
                "ours": REFERENCE,
                "theirs": name,
                "findings": findings,
                "sentences": sentences + [finding["sentence"] for finding in findings],
            }
        )
    return told


def _finding(ours: dict, quantity: str, theirs: list[float], our_label: str, their_place: str) -> dict:
    difference = paired_difference(ours["values"][quantity], theirs)
    words = sentence(quantity, f"{our_label} at base width {ours['base_channels']}", their_place, difference)
    place = {"base_channels": ours["base_channels"], "saved_bytes": ours["saved_bytes"], "against": their_place}
    return {"quantity": quantity} | place | difference.as_json() | {"sentence": words}


def _ascending(rows: list[dict], name: str) -> list[dict]:
    return sorted((row for row in rows if row["layer"] == name), key=lambda row: row["saved_bytes"])


def _mib(row: dict) -> str:
    return f"{row['saved_bytes'] / MIB:.1f} MiB"


def _span(rows: list[dict]) -> str:
    return f"{rows[0]['saved_bytes'] / MIB:.1f} to {_mib(rows[-1])}"
