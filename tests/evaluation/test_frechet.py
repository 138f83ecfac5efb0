"""The Frechet distance against scipy, fifty digits and formulas."""

import mpmath
import numpy as np
import pytest
from scipy.linalg import sqrtm

from ssmvdm.evaluation.frechet import GaussianStatistics, distance, frechet_distance

EPS = np.finfo(np.float64).eps


def correlated(seed: int, count: int, features: int, shift: float = 0.0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, features)) @ rng.normal(size=(features, features)) + shift


def scale(*sets: np.ndarray) -> float:
    """What the terms of the distance add up to before they cancel."""
    return sum(np.square(x.mean(axis=0)).sum() + np.trace(np.atleast_2d(np.cov(x, rowvar=False))) for x in sets)


def rounding(*sets: np.ndarray) -> float:
    """Each covariance is off by (n + d) eps of its size; a square root of it by that over its smallest singular value,
    relative to the largest: the square root of the condition number."""
    condition = max(np.linalg.cond(np.cov(x, rowvar=False)) for x in sets)
    return sum(map(sum, (x.shape for x in sets))) * EPS * np.sqrt(condition) * scale(*sets)


def with_scipy(a: np.ndarray, b: np.ndarray) -> float:
    covariances = np.cov(a, rowvar=False), np.cov(b, rowvar=False)
    step = a.mean(axis=0) - b.mean(axis=0)
    root = sqrtm(covariances[0] @ covariances[1])
    return step @ step + np.trace(covariances[0]) + np.trace(covariances[1]) - 2.0 * np.trace(root).real


def with_fifty_digits(a: np.ndarray, b: np.ndarray) -> float:
    """From the samples on, every number in 50 digits: the truth to double precision, for singular covariances too."""
    with mpmath.workdps(50):
        means, covariances = [], []
        for x in (a, b):
            rows = mpmath.matrix(x.tolist())
            mean = [mpmath.fsum(rows[:, j]) / rows.rows for j in range(rows.cols)]
            centred = mpmath.matrix(rows.rows, rows.cols)
            for i in range(rows.rows):
                for j in range(rows.cols):
                    centred[i, j] = rows[i, j] - mean[j]
            means.append(mean)
            covariances.append(centred.T * centred / (rows.rows - 1))
        values, vectors = mpmath.eigsy(covariances[0])
        root = vectors * mpmath.diag([mpmath.sqrt(max(v, 0)) for v in values]) * vectors.T
        overlap = mpmath.fsum(mpmath.sqrt(max(v, 0)) for v in mpmath.eigsy(root * covariances[1] * root)[0])
        step = mpmath.fsum((p - q) ** 2 for p, q in zip(*means, strict=True))
        traces = mpmath.fsum(c[i, i] for c in covariances for i in range(c.rows))
        return float(step + traces - 2 * overlap)


@pytest.mark.parametrize("features", [1, 2, 7, 40, 100])
def test_agrees_with_scipy(features):
    a, b = correlated(1, 4 * features + 2, features), correlated(2, 3 * features + 2, features, shift=0.5)
    if features == 1:
        expected = (a.mean() - b.mean()) ** 2 + (a.std(ddof=1) - b.std(ddof=1)) ** 2
        assert abs(frechet_distance(a, b) - expected) <= sum(map(len, (a, b))) * EPS * scale(a, b)
    else:
        assert abs(frechet_distance(a, b) - with_scipy(a, b)) <= rounding(a, b)


@pytest.mark.parametrize(("count_a", "count_b", "features"), [(9, 12, 5), (3, 4, 8), (2, 2, 6), (3, 30, 8)])
def test_agrees_with_fifty_digits_for_full_and_deficient_rank(count_a, count_b, features):
    a, b = correlated(3, count_a, features), correlated(4, count_b, features, shift=1.0)
    # Singular covariances included, the error stays at the rounding of the sums: no square root of an eps comes in.
    bound = (count_a + count_b + 2 * features) * EPS * scale(a, b)
    assert abs(frechet_distance(a, b) - with_fifty_digits(a, b)) <= bound


def test_diagonal_gaussians_have_the_formula():
    """Points at +-s_i sqrt(d) on axis i have mean 0 and a diagonal covariance."""
    deviation_a, deviation_b = np.array([1.0, 2.0, 4.0, 0.0]), np.array([3.0, 2.0, 0.5, 1.0])
    points = np.concatenate([np.eye(4), -np.eye(4)])
    shift = np.array([1.0, -2.0, 0.0, 3.0])
    variance = 2.0 / (len(points) - 1)
    expected = shift @ shift + variance * np.square(deviation_a - deviation_b).sum()
    a, b = points * deviation_a, points * deviation_b + shift
    assert abs(frechet_distance(a, b) - expected) <= (len(points) + 4) * EPS * scale(a, b)


def test_rank_deficient_gaussians_on_orthogonal_lines():
    """Nothing of either covariance lies along the other: the distance is the sum of the traces."""
    a, b = np.array([[1.0, 0.0, 0.0], [-1.0, 0.0, 0.0]]), np.array([[0.0, 2.0, 0.0], [0.0, -2.0, 0.0]])
    assert frechet_distance(a, b) == 2.0 + 8.0


def test_equal_sets_have_distance_zero_to_rounding_even_with_few_vectors():
    features = correlated(5, 20, 64)
    assert frechet_distance(features, features[::-1]) <= (20 + 64) * EPS * scale(features, features)


def test_symmetric_and_invariant_to_a_common_shift():
    a, b = correlated(6, 30, 10), correlated(7, 40, 10)
    bound = rounding(a, b)
    assert abs(frechet_distance(a, b) - frechet_distance(b, a)) <= bound
    shifted = frechet_distance(a + 2.0**20, b + 2.0**20)  # the features themselves are then rounded to 2^20 eps
    assert abs(shifted - frechet_distance(a, b)) <= 2.0**20 * EPS * 10 * np.sqrt(scale(a, b)) + bound


def test_streaming_is_the_whole_set_however_it_is_cut():
    features = correlated(8, 101, 12, shift=1e7)  # a naive sum of squares loses all digits of the scatter here
    whole = GaussianStatistics.of(features)
    exact = features.astype(np.longdouble)
    exact = exact - exact.mean(axis=0)
    truth = (exact.T @ exact).astype(np.float64)
    bound = len(features) * EPS * 1e7 * np.sqrt(len(features) * np.diag(truth).max())
    for cuts in ([], [1], [50], [1, 2, 3, 4, 99]):
        streamed = GaussianStatistics.streamed(np.split(features, cuts))
        assert streamed.count == 101
        assert np.abs(streamed.mean - whole.mean).max() <= 101 * EPS * 1e7
        assert np.abs(streamed.scatter - truth).max() <= bound
    naive = features.T @ features - 101 * np.outer(features.mean(axis=0), features.mean(axis=0))
    assert np.abs(naive - truth).max() > bound


def test_statistics_and_features_give_the_same_distance():
    a, b = correlated(9, 20, 6), correlated(10, 25, 6)
    streamed = distance(GaussianStatistics.streamed(np.split(a, [7])), GaussianStatistics.of(b))
    assert abs(streamed - frechet_distance(a, b)) <= rounding(a, b)


@pytest.mark.parametrize(
    ("a", "b", "message"),
    [
        (np.zeros((4, 3)), np.zeros((4, 2)), "3 and 2"),
        (np.zeros((1, 3)), np.zeros((4, 3)), "at least 2 vectors, got 1"),
        (np.zeros((0, 3)), np.zeros((4, 3)), r"\(0, 3\)"),
        (np.zeros(3), np.zeros((4, 3)), r"\(3,\)"),
        (np.full((4, 3), np.nan), np.zeros((4, 3)), "got 12 others"),
        (np.zeros((4, 3), complex), np.zeros((4, 3)), "complex"),
    ],
)
def test_bad_features_are_refused(a, b, message):
    with pytest.raises(ValueError, match=f"features: .*{message}"):
        frechet_distance(a, b)


def test_no_batches_are_refused():
    with pytest.raises(ValueError, match="at least one batch"):
        GaussianStatistics.streamed([])
