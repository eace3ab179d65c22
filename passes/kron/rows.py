"""Kronecker factors of an embedding table, A [v, d/n] ⊗ B [1, n]; rows that are read often count more."""

from __future__ import annotations

import numpy as np
import scipy.linalg

from graphcompress.numerics.kronecker import Factors, Split, balanced, signed
from graphcompress.passes.kron.fit import FittedFactors

COUNTED_SHARE = 0.5
"""This share of the total weight follows the samples; the rest is the same for every row."""

CHUNK_ROWS = 8192
"""So many rows are held in double precision at once."""


class RowProblem:
    """One table [v, d]: for every n the error of every rank, and the factors with the least.

    A row of A meets its own row of the table only, so that for a given B the best A does not depend on the
    weights of the rows, and the best B are the leading eigenvectors of the second moment of all pieces of n
    entries. All n are read off one second moment [d, d].
    """

    def __init__(self, table: np.ndarray, counts: np.ndarray | None = None) -> None:
        self._table = table
        weights = _row_weights(len(table), counts)
        self._moment = np.zeros((table.shape[1], table.shape[1]), np.float64)
        for start in range(0, len(table), CHUNK_ROWS):
            rows = table[start : start + CHUNK_ROWS].astype(np.float64)
            self._moment += rows.T @ (rows * weights[start : start + CHUNK_ROWS, None])

    def errors(self, split: Split) -> np.ndarray:
        """Relative error of ranks 1 … n of ``split``: √(Σ weight · squared error / Σ weight · square)."""
        values = scipy.linalg.eigvalsh(self._pieces(split.m2), check_finite=False)[::-1]
        tail = 1 - np.cumsum(np.maximum(values, 0.0)) / max(float(np.trace(self._moment)), 1e-300)
        return np.sqrt(np.maximum(tail, 0.0))

    def solve(self, split: Split, rank: int) -> FittedFactors:
        """The best factors of ``rank`` terms, and their relative error."""
        rank = min(rank, split.full_rank)
        vectors = scipy.linalg.eigh(self._pieces(split.m2), check_finite=False)[1][:, ::-1]
        right = signed(vectors[:, :rank])
        a = self._table.reshape(-1, split.m2).astype(np.float32, copy=False) @ right.astype(np.float32)
        factors: Factors = balanced(split, a, right.T)
        return FittedFactors(factors, (float(self.errors(split)[rank - 1]),))

    def _pieces(self, width: int) -> np.ndarray:
        """Second moment [n, n] of the pieces of ``width`` entries: the sum of the blocks on the diagonal."""
        blocks = len(self._moment) // width
        four = self._moment.reshape(blocks, width, blocks, width)
        total: np.ndarray = np.einsum("iaib->ab", four)
        return total


def _row_weights(rows: int, counts: np.ndarray | None) -> np.ndarray:
    uniform = np.full(rows, 1.0 / rows)
    if counts is None or counts.sum() == 0:
        return uniform
    weights: np.ndarray = (1 - COUNTED_SHARE) * uniform + COUNTED_SHARE * counts / counts.sum()
    return weights
