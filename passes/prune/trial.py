"""Fits of the linear that reads a block, and the error that the block has with them."""

from __future__ import annotations

import numpy as np

from graphcompress.analysis.linears import bias_of
from graphcompress.numerics.importance import TINY
from graphcompress.numerics.least_squares import (
    JointMoments,
    LinearMap,
    best_ridge,
    mean_squared_error,
    ridge,
)
from graphcompress.passes.prune.blocks import Block, Evidence
from graphcompress.passes.prune.ranking import RIDGE
from graphcompress.passes.prune.removal import Removal


class Trial:
    """Fits of one block's reader to what it gave before anything was cut."""

    def __init__(self, block: Block, evidence: Evidence, *, refit: bool) -> None:
        self.block = block
        self.weight, self.bias = block.reader.dense().astype(np.float64), bias_of(block.reader)
        self.refit = refit
        self.can_refit = block.can_refit
        self.fit_on = evidence.fit.aimed_at(self.weight, self.bias)
        self.held_out = evidence.held_out.aimed_at(self.weight, self.bias)

    def strength(self, rows: np.ndarray) -> float:
        """The ridge that held-out tokens like best; infinite where only the bias can be corrected."""
        if not (self.refit and self.can_refit):
            return np.inf
        # Strengths are compared on the held-out half alone: on the tokens of the fit the weakest one always
        # wins.
        return best_ridge(self.fit_on.of(rows), self.held_out.of(rows), self.weight[rows])

    def error(self, rows: np.ndarray, strength: float) -> float:
        """Error on held-out tokens, as a share of the spread of the block's output."""
        fit = self._fit(self.fit_on, rows, strength)
        energy = max(self.held_out.energy, TINY)
        return float(np.sqrt(mean_squared_error(fit, self.held_out.of(rows)) / energy))

    def error_without(self, removed: np.ndarray) -> float:
        """Error on held-out tokens once the units ``removed`` are gone, at the strength of all trials."""
        return self.error(Removal(self.block, removed).rows, RIDGE)

    def without(self, removed: np.ndarray) -> LinearMap:
        """Weight [in, out] and bias without ``removed``, their rows zero, at the strength of all trials."""
        rows = Removal(self.block, removed).rows
        weight = np.zeros(self.weight.shape)
        fit = self._fit(self.fit_on, rows, RIDGE if len(rows) else np.inf)
        weight[rows] = fit.weight
        return LinearMap(weight, fit.bias)

    def final(self, rows: np.ndarray, strength: float) -> LinearMap:
        """The fit to all tokens."""
        return self._fit(self.fit_on + self.held_out, rows, strength)

    def _fit(self, moments: JointMoments, rows: np.ndarray, strength: float) -> LinearMap:
        if not self.refit:
            return LinearMap(self.weight[rows], self.bias)
        return ridge(moments.of(rows), self.weight[rows], strength if self.can_refit else np.inf)
