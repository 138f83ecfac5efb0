"""The search for the largest number of frames that fits: the right one, from any guess, in few tries."""

import math

import pytest

from benchmarks.models import tasks
from benchmarks.models.search import crossing, largest
from ssmvdm.compared import Network, layer_named
from ssmvdm.saved import network_saved_bytes


@pytest.mark.parametrize("resolution", [1, 16])
@pytest.mark.parametrize("guess", [1, 15, 40, 41, 300, 5000])
@pytest.mark.parametrize("most", [0, 1, 15, 16, 40, 255, 1000])
def test_the_bracket_is_found_from_any_guess(most, guess, resolution):
    tried = []

    def fits(count):
        assert count >= 1
        tried.append(count)
        return count <= most

    low, high = largest(fits, guess, resolution)
    assert low == most // resolution * resolution
    assert high == low + resolution
    assert high in tried
    assert low == 0 or low in tried
    assert len(set(tried)) == len(tried)
    distance = abs(guess - most) // resolution + 2
    assert len(tried) <= 2 * math.log2(distance) + 3


def test_a_good_guess_needs_two_tries():
    tried = []
    assert largest(lambda count: not tried.append(count) and count <= 77, 77) == (77, 78)
    assert tried == [77, 78]


@pytest.mark.parametrize("coefficients", [(0.0, 3.0, 5.0), (0.25, 3.0, 5.0), (2.0, 0.0, 1.0)])
@pytest.mark.parametrize("count", [3, 20, 700])
def test_the_guess_is_exact_for_lines_and_parabolas(coefficients, count):
    a, b, c = coefficients

    def value(x):
        return a * x * x + b * x + c

    points = [(x, value(x)) for x in (4, 16, 64)]
    assert crossing(points, value(count + 0.5)) == count


@pytest.mark.parametrize(
    ("points", "limit", "guess"),
    [
        ([(16, 5.0)], 100.0, 16),
        ([(16, 5.0), (32, 5.0 + 1e-9)], 100.0, 64 * 32),
        ([(16, 5.0), (32, 4.0)], 100.0, 32),
        ([(16, 50.0), (32, 90.0)], 1.0, 32),
        ([(16, 50.0), (32, 90.0)], 12.5, 1),
    ],
)
def test_the_guess_is_a_count_where_nothing_sensible_crosses(points, limit, guess):
    assert crossing(points, limit) == guess


def test_the_predicted_number_is_the_last_that_fits():
    """Against a count of every term by itself: five float32 copies of the parameters, and the bytes saved."""
    network, layer = Network.small(8, 8), layer_named("attention-einsum")

    def needed(frames):
        counted = network_saved_bytes(network, layer, frames)
        return 5 * 4 * counted["parameters"] + counted["saved_bytes"]

    memories = [needed(37), needed(90) - 1, 1000]
    request = {"layer": layer.name, "network": network.as_json(), "frames": [3], "widths": [8, 16], "width_frames": [5],
               "memories_bytes": memories}  # fmt: skip
    answer = tasks.counts(request)
    assert answer["status"] == "ok", answer["detail"]
    assert [row["most_frames"] for row in answer["predicted"]] == [37, 89, 0]
    assert answer["predicted"][0]["training_bytes"] == needed(37)
    assert answer["saved"] == [{"frames": 3, "training_bytes": needed(3)} | network_saved_bytes(network, layer, 3)]
    narrow, wide = answer["widths"]
    assert (narrow["base_channels"], narrow["frames"], narrow["training_bytes"]) == (8, 5, needed(5))
    assert wide["saved_bytes"] == network_saved_bytes(Network.small(16, 8), layer, 5)["saved_bytes"]
