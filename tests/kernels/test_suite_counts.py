"""How much the suite holds, counted from the parameters of its tests: what shrinks by accident is seen.

A case counts once however many backends it runs on; distinct means another operator or another `Case`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Hashable, Iterable

import pytest

from . import cases, test_accuracy, test_conv, test_errors, test_gradients, test_numerics, test_s4d


def parameters(test: Callable) -> Iterable[dict[str, object]]:
    """What a test is called with, but for its fixtures: one dict for each combination."""
    marks = [mark for mark in test.pytestmark if mark.name == "parametrize" and not mark.kwargs.get("indirect")]
    axes = []
    for mark in marks:
        names, values = mark.args[:2]
        names = [name.strip() for name in names.split(",")] if isinstance(names, str) else list(names)
        axes.append([dict(zip(names, value if len(names) > 1 else (value,), strict=True)) for value in values])
    for combination in itertools.product(*axes):
        yield {name: value for part in combination for name, value in part.items()}


def distinct(*tests: Callable) -> set[Hashable]:
    """Cases of several tests; calls that no `Case` describes are told apart by the test and all its parameters."""
    found: set[Hashable] = set()
    for test in tests:
        for given in parameters(test):
            alone = next(iter(given.values())) if len(given) == 1 else None
            found.add(alone if isinstance(alone, cases.Case) else (test.__name__, repr(sorted(given.items()))))
    return found


ACCURACY = (
    test_accuracy.test_core,
    test_accuracy.test_every_pair_of_options,
    test_accuracy.test_every_triple_of_what_kernels_branch_on,
    test_accuracy.test_sizes,
    test_accuracy.test_without_lanes,
    test_accuracy.test_layouts,
    test_accuracy.test_layouts_of_one_tensor,
    test_accuracy.test_regimes,
    test_accuracy.test_states_are_float32_whatever_the_storage,
    test_numerics.test_extremes_stay_within_the_bounds,
    test_conv.test_accuracy,
    test_s4d.test_float32_stays_within_rounding,
    test_s4d.test_half_precision_rounds_once,
)
KINDS = {
    "accuracy": (1500, distinct(*ACCURACY)),
    "gradcheck": (96, distinct(test_gradients.test_gradcheck)),
    "gradgradcheck": (32, distinct(test_gradients.test_gradgradcheck_of_the_reference)),
    "provenance of NaN and infinity": (162, distinct(test_numerics.test_nan_and_infinity_touch_only_what_they_must)),
    "wrong calls": (80, distinct(test_errors.test_a_wrong_call_says_what_is_wrong)),
    "layouts by tensor": (24 * len(cases.Case().given()), {(c.layout, c.odd_one) for c in cases.by_tensor()}),
}


@pytest.mark.parametrize("kind", KINDS)
def test_there_are_enough(kind):
    least, found = KINDS[kind]
    assert len(found) >= least, f"{len(found)} of at least {least}"


def test_every_tensor_meets_24_layouts():
    both, one = cases.Case().given(), cases.Case(direction="forward", initial=True).given()
    for tensor in {*both, *one, "dy", "dlast"}:
        assert len({case.layout for case in cases.by_tensor() if case.odd_one == tensor}) == 24, tensor
