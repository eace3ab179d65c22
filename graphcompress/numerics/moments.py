"""Second moments of the inputs of linears, gathered while samples stream by."""

from __future__ import annotations

import numpy as np


def finite_rows(array: np.ndarray) -> np.ndarray:
    """[..., features] → [tokens, features], without the rows that hold NaN or infinity."""
    rows = array.reshape(-1, array.shape[-1])
    finite = np.isfinite(rows).all(axis=1)
    return rows if finite.all() else rows[finite]


class SecondMoment:
    """E[x·xᵀ] over tokens; an observer for :func:`graphcompress.measure.calibrate.observe`.

    Attributes:
        total: Σ x·xᵀ [features, features].
        count: number of tokens.
    """

    def __init__(self, features: int) -> None:
        self.total = np.zeros((features, features), np.float64)
        self.count = 0

    def update(self, array: np.ndarray) -> None:
        """Take in tokens [..., features]; those that hold NaN or infinity are left out."""
        tokens = finite_rows(array).astype(np.float32, copy=False)
        # A product of one batch keeps its digits in float32, at half the time; the sum of many batches would
        # not.
        self.total += tokens.T @ tokens
        self.count += len(tokens)

    def matrix(self) -> np.ndarray:
        """The second moment, drawn towards a multiple of the identity where tokens are few.

        The share of the identity is features / (features + 10 · tokens).
        """
        features = len(self.total)
        if self.count == 0:
            return np.eye(features)
        moment = self.total / self.count
        # A direction that the samples happen not to contain still counts.
        share = features / (features + 10.0 * self.count)
        spread = float(np.trace(moment)) / features
        drawn: np.ndarray = (1 - share) * moment + share * spread * np.eye(features)
        return drawn
