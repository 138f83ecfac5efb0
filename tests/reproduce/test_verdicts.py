"""What is concluded from numbers: on numbers whose conclusion is known."""

import math

import numpy as np
import pytest

from ssmvdm.reproduce.verdicts import CLAIMS, conclusions, cost_sentences, paired_difference, student_quantile

stats = pytest.importorskip("scipy.stats", reason="scipy is not installed")

LABELS = {"bi-s6": "ours", "s6": "causal", "attention-sdpa": "attention"}


@pytest.mark.parametrize("freedom", [1, 2, 3, 4, 5, 8, 29, 30])
@pytest.mark.parametrize("probability", [0.5, 0.75, 0.975, 0.9995])
def test_quantiles_of_students_distribution(freedom, probability):
    expected = stats.t.ppf(probability, freedom)
    assert math.isclose(student_quantile(probability, freedom), expected, rel_tol=1e-9, abs_tol=1e-12)


@pytest.mark.parametrize("seeds", [2, 3, 7])
def test_the_interval_is_that_of_the_paired_t_test(seeds):
    rng = np.random.default_rng(seeds)
    theirs, change = rng.uniform(1, 2, seeds), rng.normal(0.1, 0.1, seeds)
    difference = paired_difference(list(theirs * (1 + change)), list(theirs))
    expected = stats.ttest_1samp(change, 0).confidence_interval(0.95)
    assert np.allclose([difference.low, difference.high], expected, rtol=1e-9)
    assert math.isclose(difference.mean, change.mean(), rel_tol=1e-9)


@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([0.90, 0.89, 0.91], "better"),
        ([1.10, 1.11, 1.09], "worse"),
        ([0.80, 1.10, 0.95], "undecided"),
        ([1.00, 1.00, 1.00], "undecided"),
        ([0.50], "undecided"),  # one seed, however large the difference
    ],
)
def test_a_difference_counts_when_it_stands_out_from_the_seeds(ours, verdict):
    (conclusion,) = conclusions({"held-out loss": {"bi-s6": ours, "s6": [1.0] * len(ours)}}, LABELS)
    (finding,) = conclusion["findings"]
    assert finding["verdict"] == verdict
    assert verdict in finding["sentence"]
    assert (finding["interval"] is None) == (len(ours) == 1)


def test_pairs_are_compared_and_not_means():
    """Seeds that differ far more than layers do: only the pairs tell that ours is always a little better."""
    theirs = [1.0, 2.0, 4.0]
    assert paired_difference([0.99 * loss for loss in theirs], theirs).verdict == "better"
    assert paired_difference([0.99 * loss for loss in theirs], [2.0, 4.0, 1.0]).verdict == "undecided"


def test_sentences_say_which_side_and_how_far():
    results = {"held-out loss": {"bi-s6": [0.9, 0.9], "s6": [1.0, 1.0]}}
    (conclusion,) = conclusions(results, LABELS)
    assert conclusion["findings"][0]["sentence"].startswith("The held-out loss of ours is 10.0% below that of causal (")
    assert conclusion["findings"][0]["sentence"].endswith("ours is better.")


def test_a_claim_needs_both_of_its_layers():
    everything = {claim.theirs: [1.0, 1.0] for claim in CLAIMS} | {"bi-s6": [1.0, 1.0]}
    labels = dict(zip(everything, everything, strict=True))
    told = conclusions({"held-out loss": everything, "Frechet distance": everything}, labels)
    assert [entry["question"] for entry in told] == [claim.question for claim in CLAIMS]
    assert all(len(entry["findings"]) == 2 for entry in told)
    without = {"held-out loss": {"bi-s6": [1.0, 1.0], "attention-sdpa": [1.0, 1.0]}}
    assert [entry["theirs"] for entry in conclusions(without, LABELS)] == ["attention-sdpa"]


def test_every_other_layer_is_compared_with_the_reference():
    results = {"held-out loss": {"bi-s6": [0.9, 0.9], "s6": [1.0, 1.0], "bi-s6/gss": [0.5, 0.5]}}
    labels = {"bi-s6": "ours", "s6": "causal", "bi-s6/gss": "ours, gss mixer"}
    told = conclusions(results, labels)
    assert [(entry["ours"], entry["theirs"]) for entry in told] == [("bi-s6", "s6"), ("bi-s6", "bi-s6/gss")]
    assert told[1]["question"] == "How does ours compare with ours, gss mixer?"
    assert told[1]["findings"][0]["verdict"] == "worse"


def test_costs_in_words():
    costs = [
        {"layer": layer, "frames": frames, "saved_bytes": memory, "step_seconds": seconds}
        for layer, frames, memory, seconds in [
            ("attention-sdpa", 64, 300, 8.0), ("bi-s6", 64, 200, 4.0), ("s6", 64, 200, 2.0),
            ("attention-sdpa", 16, 100, 1.0), ("bi-s6", 16, 100, 2.0), ("s6", 16, 50, 1.0),
        ]
    ]  # fmt: skip
    assert cost_sentences(costs, LABELS) == [
        "attention against ours: 1.00× what is kept for backward and 0.50× the time at 16 frames; "
        "1.50× what is kept for backward and 2.00× the time at 64 frames.",
        "causal against ours: 0.50× what is kept for backward and 0.50× the time at 16 frames; "
        "1.00× what is kept for backward and 0.50× the time at 64 frames.",
    ]
