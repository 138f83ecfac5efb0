"""The Frechet distance between Gaussian fits of two sets of feature vectors, in float64.

    d^2 = |m_a - m_b|^2 + tr C_a + tr C_b - 2 tr (C_a^1/2 C_b C_a^1/2)^1/2

(Dowson and Landau 1982; Heusel et al. 2017, eq. 6, as FID; Unterthiner et al. 2018 as FVD.) The last trace is usually
taken from a matrix square root of C_a C_b, which is not symmetric and, with fewer samples than features, singular. Here
each covariance is factored as C = F F^T by a symmetric eigendecomposition; the trace is then the sum of the singular
values of F_a^T F_b. Singular values are exact to the rounding of the largest, where the square root of an eigenvalue
that should be zero would turn a rounding error of 1e-16 into one of 1e-8.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np


@dataclass(frozen=True)
class GaussianStatistics:
    """count of vectors, their mean (d,), and scatter (d, d) = sum (x - mean)(x - mean)^T; float64.

    Statistics of parts of a set merge into those of the set, without a difference of large sums anywhere.
    """

    count: int
    mean: np.ndarray
    scatter: np.ndarray

    @classmethod
    def of(cls, features: np.ndarray) -> GaussianStatistics:
        """Two passes over features (n, d), n >= 1."""
        features = checked_features(features)
        mean = features.mean(axis=0)
        centred = features - mean
        drift = centred.mean(axis=0)  # what rounding left of the mean
        centred -= drift
        return cls(len(features), mean + drift, centred.T @ centred)

    @classmethod
    def streamed(cls, batches: Iterable[np.ndarray]) -> GaussianStatistics:
        """Of all batches (n_i, d) together, one in memory at a time."""
        total: GaussianStatistics | None = None
        for batch in batches:
            part = cls.of(batch)
            total = part if total is None else total.merged(part)
        if total is None:
            raise ValueError("features: expected at least one batch, got none")
        return total

    def merged(self, other: GaussianStatistics) -> GaussianStatistics:
        """Of both sets together (Chan, Golub and LeVeque 1979)."""
        if self.mean.shape != other.mean.shape:
            raise ValueError(f"features: expected {len(self.mean)} per vector, got {len(other.mean)}")
        count = self.count + other.count
        step = other.mean - self.mean
        scatter = self.scatter + other.scatter + (self.count * other.count / count) * np.outer(step, step)
        return GaussianStatistics(count, self.mean + (other.count / count) * step, scatter)

    @property
    def covariance(self) -> np.ndarray:
        """Unbiased, as np.cov's. ValueError for fewer than two vectors."""
        if self.count < 2:
            raise ValueError(f"features: a covariance needs at least 2 vectors, got {self.count}")
        return self.scatter / (self.count - 1)


def checked_features(features: np.ndarray) -> np.ndarray:
    """features as float64 (n, d). ValueError unless there are n >= 1 vectors of d >= 1 finite numbers."""
    features = np.asarray(features)
    if features.ndim != 2 or not features.size or features.dtype.kind not in "fiu":
        raise ValueError(
            f"features: expected real numbers (vectors, features), got {features.dtype} {tuple(features.shape)}"
        )
    features = features.astype(np.float64)
    if not np.isfinite(features).all():
        raise ValueError(f"features: expected finite numbers, got {np.count_nonzero(~np.isfinite(features))} others")
    return features


def frechet_distance(features_a: np.ndarray, features_b: np.ndarray) -> float:
    """Squared Frechet distance, as FID and FVD report it, of features (n_a, d) and (n_b, d).

    n may be smaller than d. ValueError for other shapes, fewer than two vectors, or numbers that are not finite.
    """
    return distance(GaussianStatistics.of(features_a), GaussianStatistics.of(features_b))


def distance(a: GaussianStatistics, b: GaussianStatistics) -> float:
    """Squared Frechet distance of the Gaussians with these statistics."""
    if a.mean.shape != b.mean.shape:
        raise ValueError(f"features: both sets must have equally many, got {len(a.mean)} and {len(b.mean)}")
    covariance_a, covariance_b = a.covariance, b.covariance
    overlap = np.linalg.svd(_factor(covariance_a).T @ _factor(covariance_b), compute_uv=False).sum()
    step = a.mean - b.mean
    squared = step @ step + np.trace(covariance_a) + np.trace(covariance_b) - 2.0 * overlap
    return max(float(squared), 0.0)  # rounding may leave a little less than nothing of two equal sets


def _factor(covariance: np.ndarray) -> np.ndarray:
    """F (d, rank) with F F^T = covariance. Eigenvalues within the rounding error of the largest are zeros."""
    values, vectors = np.linalg.eigh(covariance)
    kept = values > len(values) * np.finfo(np.float64).eps * max(values[-1], 0.0)
    return vectors[:, kept] * np.sqrt(values[kept])
