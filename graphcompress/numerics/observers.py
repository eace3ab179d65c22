"""Streaming statistics of activations in bounded memory; how the data was cut up does not matter."""

from __future__ import annotations

import math
from typing import Literal

import numpy as np

from graphcompress.numerics.moments import finite_rows
from graphcompress.numerics.quantise import Affine, affine

Calibration = Literal["minmax", "percentile", "mse"]

BINS = 4096
"""A histogram has this many bins on each side of zero, far more than the 256 steps of a quantisation."""

_LEAST_WIDTH = float(np.finfo(np.float32).smallest_subnormal)

SAMPLED_ROWS = 512
"""Rows of an activation that are kept, on which the error of what reads it is judged."""

MSE_STEPS = 40
"""So many clipping points are tried for each end of the range, between a fifth and all of it."""


class Histogram:
    """Counts of values in bins of one width, a power of two that grows with the largest magnitude.

    Bin i holds [i · width, (i + 1) · width). When a value does not fit, bins are merged in twos, which moves
    no edge: the counts are those of one pass over all values with the final width. Values that are not finite
    are left out.

    Attributes:
        low, high: smallest and largest value seen (0 before any).
        counts: [2 · BINS], int64; index BINS is the first bin above zero.
        width: of a bin; 0 before any value other than zero.
    """

    def __init__(self) -> None:
        self.low = self.high = 0.0
        self.counts = np.zeros(2 * BINS, np.int64)
        self.width = 0.0
        self._zeros = 0

    def update(self, array: np.ndarray) -> None:
        """Count the values of ``array``, of any shape."""
        values = np.asarray(array, np.float32).ravel()
        values = values[np.isfinite(values)]
        if values.size == 0:
            return
        low, high = float(values.min()), float(values.max())
        # Until then low and high are 0 because nothing was seen, not because 0 was.
        first = not self.total
        self.low = low if first else min(self.low, low)
        self.high = high if first else max(self.high, high)
        peak = max(-low, high)
        # Zeros fit a bin of any width, and no width is known before another number is seen.
        if peak == 0.0:
            self._zeros += values.size
            return
        self._widen(peak)
        # A power of two divides exactly, so that no value changes its bin when bins are merged.
        index = np.floor(values / np.float32(self.width)).astype(np.int64) + BINS
        self.counts += np.bincount(np.clip(index, 0, 2 * BINS - 1), minlength=2 * BINS)

    @property
    def total(self) -> int:
        """Number of values counted."""
        return int(self.counts.sum()) + self._zeros

    @property
    def edges(self) -> np.ndarray:
        """[2 · BINS + 1] bin edges."""
        return np.arange(-BINS, BINS + 1) * self.width

    @property
    def bins(self) -> np.ndarray:
        """[2 · BINS] counts, with the values that were all zero in the first bin above zero."""
        counts = self.counts.copy()
        counts[BINS] += self._zeros
        return counts

    def quantile(self, share: float) -> float:
        """The value below which ``share`` (0-1) of the values lie, linear within a bin, in [low, high]."""
        if self.width == 0.0:
            return 0.0
        cumulative = np.concatenate([[0], np.cumsum(self.bins)])
        position = np.interp(share * cumulative[-1], cumulative, self.edges)
        return float(np.clip(position, self.low, self.high))

    def _widen(self, peak: float) -> None:
        # A width below the smallest float32 would be zero as one, and values are divided by it.
        needed = max(math.ldexp(1.0, math.frexp(peak)[1]) / BINS, _LEAST_WIDTH)
        if self.width == 0.0:
            self.width = needed
        while self.width < needed:
            merged = self.counts.reshape(-1, 2).sum(axis=1)
            self.counts = np.concatenate(
                [np.zeros(BINS // 2, np.int64), merged, np.zeros(BINS // 2, np.int64)]
            )
            self.width *= 2.0


class RowSample:
    """Evenly spaced rows [at most ``capacity``, features] of everything seen.

    Row i is kept when i is a multiple of the stride, which doubles whenever the room is full.
    """

    def __init__(self, capacity: int = SAMPLED_ROWS) -> None:
        self.capacity = capacity
        self._stride = 1
        self._seen = 0
        self._rows: np.ndarray | None = None

    @property
    def rows(self) -> np.ndarray:
        """[rows, features] float32; no rows before anything was seen."""
        return np.zeros((0, 0), np.float32) if self._rows is None else self._rows

    def update(self, array: np.ndarray) -> None:
        """Take in ``array`` [..., features]."""
        array = array.reshape(-1, array.shape[-1])
        # Rows are numbered through all updates: so far away is the next multiple of the stride.
        chosen = array[-self._seen % self._stride :: self._stride].astype(np.float32)
        self._seen += len(array)
        self._rows = chosen if self._rows is None else np.concatenate([self._rows, chosen])
        while len(self._rows) > self.capacity:
            # A view would keep the rows that were left out in memory.
            self._rows = self._rows[::2].copy()
            self._stride *= 2


class LargestRows:
    """The rows [at most ``capacity``, features] with the largest entries of everything seen."""

    def __init__(self, capacity: int = 8) -> None:
        self.capacity = capacity
        self._rows: np.ndarray | None = None

    @property
    def rows(self) -> np.ndarray:
        """[rows, features] float32; no rows before anything was seen."""
        return np.zeros((0, 0), np.float32) if self._rows is None else self._rows

    def update(self, rows: np.ndarray) -> None:
        """Take in ``rows`` [rows, features]."""
        found = rows.astype(np.float32) if self._rows is None else np.concatenate([self._rows, rows])
        # Of equal rows the first seen stay, so that it does not matter how the data was cut up.
        order = np.argsort(-np.abs(found).max(axis=1, initial=0.0), kind="stable")
        self._rows = found[np.sort(order[: self.capacity])].astype(np.float32)


class Activation:
    """What calibration needs to know of one activation [..., features].

    Attributes:
        histogram: of all values.
        sample: some rows, for the error of what consumes them.
        largest: the rows with the largest entries, which a sample may lack: language models keep numbers a
            hundred times as large as all others at the first token (arXiv:2402.17762).
        lows, highs: [features] smallest and largest value per feature, zero included.
    """

    def __init__(self) -> None:
        self.histogram = Histogram()
        self.sample = RowSample()
        self.largest = LargestRows()
        self.lows = np.zeros(0, np.float32)
        self.highs = np.zeros(0, np.float32)

    @property
    def peaks(self) -> np.ndarray:
        """[features] largest magnitude per feature."""
        return np.maximum(-self.lows, self.highs)

    def update(self, array: np.ndarray) -> None:
        """Take in the value of one batch; what is not finite in it is left out."""
        rows = finite_rows(array)
        self.histogram.update(array)
        self.sample.update(rows)
        self.largest.update(rows.reshape(-1, rows.shape[-1]))
        lows = rows.min(axis=0, initial=0.0).astype(np.float32)
        highs = rows.max(axis=0, initial=0.0).astype(np.float32)
        self.lows = lows if self.lows.size == 0 else np.minimum(self.lows, lows)
        self.highs = highs if self.highs.size == 0 else np.maximum(self.highs, highs)

    def divided(self, factors: np.ndarray) -> Activation:
        """The same activation divided by ``factors`` [features], as far as the kept rows tell.

        Its extremes are those of everything seen; what lies between them is counted on the kept rows.
        """
        other = Activation()
        other.update(self.sample.rows / factors)
        other.lows, other.highs = self.lows / factors, self.highs / factors
        other.histogram.update(np.concatenate([other.lows, other.highs]))
        return other


def quantisation(
    histogram: Histogram, method: Calibration, *, signed: bool, percentile: float = 99.99
) -> Affine:
    """Quantisation of the values that ``histogram`` has seen.

    ``minmax`` covers all of them; ``percentile`` covers that share (in %), half of the rest cut at each
    end; ``mse`` cuts each end where the squared error of quantising all values is smallest.
    """
    if method == "minmax":
        return affine(histogram.low, histogram.high, signed=signed)
    if method == "percentile":
        tail = (1.0 - percentile / 100.0) / 2.0
        return affine(histogram.quantile(tail), histogram.quantile(1.0 - tail), signed=signed)
    return _least_squares(histogram, signed=signed)


def _least_squares(histogram: Histogram, *, signed: bool) -> Affine:
    """Search both ends of the range in turn, for the least error of the middles of the bins."""
    filled = np.flatnonzero(histogram.bins)
    counts = histogram.bins[filled].astype(np.float64)
    middles = (filled - BINS + 0.5) * histogram.width
    low, high = min(histogram.low, 0.0), max(histogram.high, 0.0)

    def error(bounds: tuple[float, float]) -> float:
        quantised = affine(*bounds, signed=signed).fake_quantise(middles)
        return float(np.sum(counts * (middles - quantised) ** 2))

    shares = np.linspace(0.2, 1.0, MSE_STEPS)
    if signed:
        return affine(*min(((low * share, high * share) for share in shares), key=error), signed=True)
    best = (low, high)
    # The step follows from both ends, so that each is tried again once the other has moved.
    for _ in range(2):
        best = min([best, *((low * share, best[1]) for share in shares)], key=error)
        best = min([best, *((best[0], high * share) for share in shares)], key=error)
    return affine(*best, signed=False)
