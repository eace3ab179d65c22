"""Ridge regression from streamed moments: refit the weights that remain so that an output changes least."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import scipy.linalg

RIDGES = (0.1, 0.3, 1.0, 3.0, 10.0, np.inf)
"""Strengths that are tried on held-out tokens, in units of the mean variance of the features.

The last corrects the bias alone, so that a fit to too few tokens does no harm.
"""

ROWS_AT_A_TIME = 1024
"""So many rows are gathered before the moments are brought up to date: one large product is faster than many
small ones."""


class JointMoments:
    """Count, means and second moments of rows x [features] with targets y [targets].

    Sums of separate parts of the data are added with ``+``; the order of rows does not matter.

    Attributes:
        count: rows seen.
        xx: Σ x⁺·x⁺ᵀ [features + 1, features + 1], where x⁺ is x with a one behind it.
        xy: Σ x⁺·yᵀ [features + 1, targets].
        yy: Σ |y|².
    """

    def __init__(self, features: int, targets: int = 0) -> None:
        self.count = 0
        self.xx = np.zeros((features + 1, features + 1))
        self.xy = np.zeros((features + 1, targets))
        self.yy = 0.0

    def update(self, x: np.ndarray, y: np.ndarray | None = None) -> None:
        """Take in rows [tokens, features] and their targets [tokens, targets]; many at a time is faster."""
        x = x.reshape(-1, x.shape[-1])
        # A feature that is always one turns the bias into one more weight, and yields means and count on
        # the way.
        extended = np.concatenate([x, np.ones((len(x), 1), x.dtype)], axis=1)
        self.count += len(x)
        self.xx += extended.T @ extended
        if y is None:
            return
        y = y.reshape(-1, y.shape[-1])
        self.xy += extended.T @ y
        self.yy += float(np.sum(np.square(y, dtype=np.float64)))

    def __add__(self, other: JointMoments) -> JointMoments:
        total = JointMoments(len(self.xx) - 1, self.xy.shape[1])
        total.count = self.count + other.count
        total.xx, total.xy, total.yy = self.xx + other.xx, self.xy + other.xy, self.yy + other.yy
        return total

    def of(self, rows: np.ndarray) -> JointMoments:
        """The moments of the features ``rows`` alone."""
        index = np.append(rows, len(self.xx) - 1)
        part = JointMoments(len(rows), 0)
        part.count, part.yy = self.count, self.yy
        part.xx, part.xy = self.xx[np.ix_(index, index)], self.xy[index]
        return part

    def mapped(self, change: np.ndarray) -> JointMoments:
        """The moments of rows x⁺·``change`` [features + 1, features + 1], with the same targets."""
        part = JointMoments(len(self.xx) - 1, 0)
        part.count, part.yy = self.count, self.yy
        part.xx, part.xy = change.T @ self.xx @ change, change.T @ self.xy
        return part

    def aimed_at(self, weight: np.ndarray, bias: np.ndarray) -> JointMoments:
        """The same features, aimed at x·weight + bias: what a linear gives before its inputs are cut."""
        full = np.concatenate([weight, bias[None]]).astype(np.float64)
        aimed = JointMoments(len(self.xx) - 1, full.shape[1])
        aimed.count, aimed.xx, aimed.xy = self.count, self.xx, self.xx @ full
        # The targets are linear in the features, so their energy follows from the moments: |Σ w·x⁺|² =
        # wᵀ·(Σ x⁺·x⁺ᵀ)·w.
        aimed.yy = float(np.sum(full * aimed.xy))
        return aimed

    @property
    def mean(self) -> np.ndarray:
        """[features]."""
        mean: np.ndarray = self.xx[-1, :-1] / max(self.count, 1)
        return mean

    @property
    def covariance(self) -> np.ndarray:
        """[features, features], about the mean."""
        covariance: np.ndarray = self.xx[:-1, :-1] / max(self.count, 1) - np.outer(self.mean, self.mean)
        return covariance

    @property
    def energy(self) -> float:
        """E|y - E y|²: what a constant output would leave unexplained."""
        mean = self.xy[-1] / max(self.count, 1)
        return self.yy / max(self.count, 1) - float(mean @ mean)


class GatheredRows:
    """Collects rows until there are enough for one update of ``moments``: a few large products cost less."""

    def __init__(self, moments: JointMoments) -> None:
        self.moments = moments
        self._rows: list[tuple[np.ndarray, ...]] = []

    def update(self, *rows: np.ndarray) -> None:
        """Take in rows x [tokens, features], and their targets [tokens, targets] if there are any."""
        self._rows.append(tuple(array.reshape(-1, array.shape[-1]).astype(np.float32) for array in rows))
        if sum(len(part[0]) for part in self._rows) >= ROWS_AT_A_TIME:
            self.finished()

    def finished(self) -> JointMoments:
        """The moments of all rows so far."""
        if self._rows:
            self.moments.update(*(np.concatenate(arrays) for arrays in zip(*self._rows, strict=True)))
            self._rows = []
        return self.moments


@dataclass(frozen=True)
class LinearMap:
    """A linear map: ``y ≈ x·weight + bias``.

    Attributes:
        weight: [features, targets].
        bias: [targets].
    """

    weight: np.ndarray
    bias: np.ndarray


def mean_squared_error(fit: LinearMap, moments: JointMoments) -> float:
    """E|x·weight + bias - y|² over the rows that ``moments`` has seen."""
    full = np.concatenate([fit.weight, fit.bias[None]]).astype(np.float64)
    total = float(np.sum(full * (moments.xx @ full - 2.0 * moments.xy))) + moments.yy
    # Large terms cancel in the sum, so that rounding may leave a tiny negative number for a perfect fit.
    return max(total, 0.0) / max(moments.count, 1)


def ridge(moments: JointMoments, prior: np.ndarray, strength: float) -> LinearMap:
    """The W, b of least E|x·W + b - y|² + strength · v · |W - prior|², v the mean variance of the features.

    It explains the rows at least as well as ``prior`` with its best bias does; features that never vary keep
    their prior weight. An infinite strength keeps ``prior`` and corrects the bias alone.
    """
    mean, covariance = moments.mean, moments.covariance
    features = len(covariance)
    target_mean = moments.xy[-1] / max(moments.count, 1)
    cross = moments.xy[:-1] / max(moments.count, 1) - np.outer(mean, target_mean)
    spread = float(np.trace(covariance)) / max(features, 1)
    prior = prior.astype(np.float64)
    # With features that never vary, or a prior that may not move, only the bias has anything to correct.
    if spread > 0.0 and np.isfinite(strength):
        system = covariance + strength * spread * np.eye(features)
        weight = prior + _solve(system, cross - covariance @ prior)
    else:
        weight = prior
    # For any weight this bias is the best one: it makes the mean of the errors zero.
    return LinearMap(weight, target_mean - mean @ weight)


def best_ridge(fit_on: JointMoments, held_out: JointMoments, prior: np.ndarray) -> float:
    """The strength of :data:`RIDGES` whose fit has the smallest error on rows that it has not seen."""
    errors = [mean_squared_error(ridge(fit_on, prior, strength), held_out) for strength in RIDGES]
    return RIDGES[int(np.argmin(errors))]


def _solve(system: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Cholesky; a system that rounding made indefinite is solved in the least-squares sense."""
    try:
        # Rows with NaN or infinity were left out before, so that checking the whole matrix would find
        # nothing.
        factor = scipy.linalg.cho_factor(system, lower=True, check_finite=False)
    except np.linalg.LinAlgError:
        solution: np.ndarray = scipy.linalg.lstsq(system, right, check_finite=False)[0]
        return solution
    solved: np.ndarray = scipy.linalg.cho_solve(factor, right, check_finite=False)
    return solved
