"""What the numbers say of each claim: a difference counts when it stands out from the spread between seeds.

Two layers that were trained with the same seed saw the same clips, steps and noise, so their results are compared in
pairs: the mean over seeds of the relative difference, with Student's 95 % interval for it.
"""

import math
from dataclasses import dataclass
from statistics import mean, stdev

from ssmvdm.reproduce.study import REFERENCE

CONFIDENCE = 0.95


@dataclass(frozen=True)
class Claim:
    """A question about two layers, `ours` and `theirs`, by name."""

    question: str
    ours: str
    theirs: str


CLAIMS = (
    Claim("Does it matter to scan in both directions?", REFERENCE, "s6"),
    Claim("Does the scan do as well as attention?", REFERENCE, "attention-sdpa"),
    Claim("Does the scan do as well as linear attention?", REFERENCE, "linear-attention"),
    Claim("Does it matter that the scan is selective?", REFERENCE, "bi-s4d"),
)


@dataclass(frozen=True)
class Difference:
    """Relative difference, ours - theirs over theirs, of a quantity that should be small: its mean over `seeds` pairs
    and the interval it lies in with 95 % confidence."""

    mean: float
    low: float
    high: float
    seeds: int

    @property
    def verdict(self) -> str:
        """Better or worse when the whole interval lies on one side of zero, else undecided."""
        if self.high < 0:
            return "better"
        return "worse" if self.low > 0 else "undecided"

    def as_json(self) -> dict:
        interval = None if self.seeds < 2 else [self.low, self.high]
        return {"mean": self.mean, "interval": interval, "seeds": self.seeds, "verdict": self.verdict}


def paired_difference(ours: list[float], theirs: list[float]) -> Difference:
    """Of results in the order of their seeds. One pair has no spread to be judged by: its interval is infinite."""
    differences = [(a - b) / b for a, b in zip(ours, theirs, strict=True)]
    count, middle = len(differences), mean(differences)
    if count < 2:
        return Difference(middle, -math.inf, math.inf, count)
    half = student_quantile((1 + CONFIDENCE) / 2, count - 1) * stdev(differences) / math.sqrt(count)
    return Difference(middle, middle - half, middle + half, count)


def student_quantile(probability: float, freedom: int) -> float:
    """The t with P(T <= t) = probability >= 1/2, T of Student's distribution with `freedom` degrees."""
    low, high = 0.0, 1.0
    while student_cumulative(high, freedom) < probability:
        high *= 2
    while low < (middle := (low + high) / 2) < high:
        low, high = (middle, high) if student_cumulative(middle, freedom) < probability else (low, middle)
    return high


def student_cumulative(t: float, freedom: int) -> float:
    """P(T <= t) for t >= 0: a finite sum in theta = atan(t / sqrt(freedom)) (Abramowitz and Stegun, 26.7.3, 26.7.4)."""
    theta = math.atan(t / math.sqrt(freedom))
    first = 1 + freedom % 2  # powers of the cosine that the sum contains are as odd as freedom + 1
    term = total = math.cos(theta) if freedom % 2 else 1.0
    for power in range(first, freedom - 2, 2):
        term *= power / (power + 1) * math.cos(theta) ** 2
        total += term
    if freedom % 2 == 0:
        return 0.5 + 0.5 * math.sin(theta) * total
    within = theta + math.sin(theta) * total if freedom > 1 else theta
    return 0.5 + within / math.pi


def sentence(quantity: str, ours: str, theirs: str, difference: Difference) -> str:
    """One comparison in words. quantity: "held-out loss", say; ours, theirs: the layers as people call them."""
    side = "below" if difference.mean < 0 else "above"
    told = f"The {quantity} of {ours} is {abs(difference.mean):.1%} {side} that of {theirs}"
    if difference.seeds < 2:
        return f"{told} with one seed, which has no spread to judge it by: undecided."
    interval = f"95 % interval over {difference.seeds} seeds {difference.low:+.1%} to {difference.high:+.1%}"
    outcome = {
        "better": f"{ours} is better",
        "worse": f"{ours} is worse",
        "undecided": "undecided, the seeds differ as much",
    }[difference.verdict]
    return f"{told} ({interval}): {outcome}."


def quantities(result: dict) -> dict[str, dict[str, list[float]]]:
    """What layers are compared by: quantity -> layer -> values by seed."""
    values: dict[str, dict[str, list[float]]] = {"held-out loss": {}, "Frechet distance": {}}
    for row in result["training"]:
        values["held-out loss"].setdefault(row["layer"], []).append(row["held_out"]["all"])
    for row in result["frechet"]["rows"]:
        values["Frechet distance"].setdefault(row["layer"], []).append(row["distance"])
    return values


def conclusions(results: dict[str, dict[str, list[float]]], labels: dict[str, str]) -> list[dict]:
    """results: quantity -> layer -> values in the order of the seeds, all of them better when smaller.

    One entry per claim both of whose layers took part, and one for each other layer beside the reference: {"question",
    "ours", "theirs", "findings": [{"quantity", "mean", "interval", "seeds", "verdict", "sentence"}]}.
    """
    told = []
    asked = {claim.theirs for claim in CLAIMS} | {REFERENCE}
    others = [name for name in labels if name not in asked]
    compared = (Claim(f"How does {labels[REFERENCE]} compare with {labels[name]}?", REFERENCE, name) for name in others)
    for claim in (*CLAIMS, *compared):
        findings = []
        for quantity, by_layer in results.items():
            if claim.ours not in by_layer or claim.theirs not in by_layer:
                continue
            difference = paired_difference(by_layer[claim.ours], by_layer[claim.theirs])
            words = sentence(quantity, labels[claim.ours], labels[claim.theirs], difference)
            findings.append({"quantity": quantity} | difference.as_json() | {"sentence": words})
        if findings:
            told.append({"question": claim.question, "ours": claim.ours, "theirs": claim.theirs, "findings": findings})
    return told


def cost_sentences(costs: list[dict], labels: dict[str, str], reference: str = REFERENCE) -> list[str]:
    """What each layer's training step takes against the reference's, at the fewest and at the most frames."""
    by_place = {(row["layer"], row["frames"]): row for row in costs}
    frames = sorted({row["frames"] for row in costs})
    told = []
    for name in dict.fromkeys(row["layer"] for row in costs if row["layer"] != reference):
        parts = []
        for count in dict.fromkeys((frames[0], frames[-1])):
            theirs, ours = by_place[name, count], by_place[reference, count]
            memory = theirs["saved_bytes"] / ours["saved_bytes"]
            seconds = theirs["step_seconds"] / ours["step_seconds"]
            parts.append(f"{memory:.2f}× what is kept for backward and {seconds:.2f}× the time at {count} frames")
        told.append(f"{labels[name]} against {labels[reference]}: {'; '.join(parts)}.")
    return told
