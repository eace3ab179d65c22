"""How far two arrays are apart, and how well predictions fit labels."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence

import numpy as np

SQNR_CEILING_DB = 200.0
"""This SQNR, in dB, is reported for identical arrays, where the ratio is infinite."""

BLOCK = 1 << 20
"""So many elements are held in double precision at once (8 MiB)."""

NEVER = -65504.0
"""Score of a class that a model has no row for any more: the lowest number of float16, which is never chosen
and takes no part in a softmax."""


def sqnr_db(reference: np.ndarray, actual: np.ndarray) -> float:
    """Signal-to-quantisation-noise ratio 10·log10(Σ reference² / Σ (reference - actual)²), at most 200 dB."""
    wanted, seen = np.ravel(reference), np.ravel(actual)
    signal = noise = 0.0
    for start in range(0, wanted.size, BLOCK):
        # A copy also where it is float64 already: the subtraction below happens in it.
        block = wanted[start : start + BLOCK].astype(np.float64)
        signal += float(block @ block)
        block -= seen[start : start + BLOCK]
        noise += float(block @ block)
    return ratio_db(signal, noise)


def error_at(sqnr_db: float) -> float:
    """Root of noise over signal, ‖reference - actual‖ / ‖reference‖, of an SQNR in dB: 0.1 for 20 dB."""
    # A power of ten above 308 is an OverflowError in Python, and no infinity.
    return float(10.0 ** min(-sqnr_db / 20.0, 300.0))


def row_sqnr_db(reference: np.ndarray, actual: np.ndarray) -> float:
    """SQNR of rows [..., features] that all count alike: their mean share of noise, at most 200 dB.

    Where a few rows are a hundred times as large as the others, the plain ratio only sees those few. A row
    that is less than a hundredth of their root mean square is measured against that.
    """
    exact = np.asarray(reference, np.float64).reshape(-1, np.shape(reference)[-1])
    noise = np.mean(np.square(np.asarray(actual, np.float64).reshape(exact.shape) - exact), axis=1)
    return row_ratio_db(np.mean(np.square(exact), axis=1), noise)


def row_ratio_db(signal: np.ndarray, noise: np.ndarray) -> float:
    """As :func:`row_sqnr_db`, of the energy of signal and noise of each row."""
    if signal.size == 0 or not signal.any():
        return ratio_db(float(np.sum(signal)), float(np.sum(noise)))
    return ratio_db(1.0, float(np.mean(noise / np.maximum(signal, 1e-4 * np.mean(signal)))))


def divergences(reference: np.ndarray, actual: np.ndarray) -> np.ndarray:
    """KL divergence of the distributions that two arrays of scores [rows, classes] give, in nats [rows].

    Σ p · (log p - log q) with p of ``reference``: what a model loses in the likelihood of text that is as
    ``reference`` expects it. A perplexity grows by the factor exp of its mean.
    """
    found = np.zeros(len(reference))
    rows = max(1, BLOCK // max(1, reference.shape[-1]))
    for start in range(0, len(reference), rows):
        wanted, seen = (_log_shares(array[start : start + rows]) for array in (reference, actual))
        shares = np.exp(wanted)
        # A class that cannot be has a share of 0 and a logarithm of -∞, whose product is no number.
        with np.errstate(invalid="ignore"):
            lost = np.where(shares > 0.0, shares * (wanted - seen), 0.0)
        found[start : start + rows] = lost.sum(axis=-1)
    return found


def _log_shares(scores: np.ndarray) -> np.ndarray:
    """Logarithms of the softmax of scores [rows, classes]."""
    shifted = scores.astype(np.float64) - scores.max(axis=-1, keepdims=True)
    logs: np.ndarray = shifted - np.log(np.exp(shifted).sum(axis=-1, keepdims=True))
    return logs


def ratio_db(signal: float, noise: float) -> float:
    """10·log10(signal / noise), between -200 and 200 dB."""
    if noise == 0.0:
        return SQNR_CEILING_DB
    if not np.isfinite(noise) or signal == 0.0:
        return -SQNR_CEILING_DB
    return float(np.clip(10.0 * np.log10(signal / noise), -SQNR_CEILING_DB, SQNR_CEILING_DB))


def cosine(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """Cosine similarity along the last axis: [..., n], [..., n] → [...]."""
    norms = np.linalg.norm(a, axis=-1) * np.linalg.norm(b, axis=-1)
    cosines: np.ndarray = np.sum(a * b, axis=-1) / np.maximum(norms, 1e-12)
    return cosines


def row_blocks(a: np.ndarray, b: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Some rows of two arrays of one shape at a time, in double precision: [rows, last axis]; none of none.

    Scores over a vocabulary are the largest arrays of a language model.
    """
    if not a.size:
        return
    width = a.shape[-1] if a.ndim else 1
    rows, others, step = a.reshape(-1, width), b.reshape(-1, width), max(1, BLOCK // width)
    for start in range(0, len(rows), step):
        block = slice(start, start + step)
        yield rows[block].astype(np.float64), others[block].astype(np.float64)


def entry_errors(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """|a - b|; 0 where both are the same infinity or NaN, infinite where only one is."""
    # Infinity minus infinity is NaN, so that equal entries are told apart first.
    same = (a == b) | (np.isnan(a) & np.isnan(b))
    with np.errstate(invalid="ignore"):
        error = np.where(same, 0.0, np.abs(a - b))
    return np.where(np.isnan(error), np.inf, error)


def smallest_cosine(a: np.ndarray, b: np.ndarray) -> float:
    """Smallest cosine of the rows of ``a`` and ``b``; rows that are equal have 1, rows with NaN -1."""
    rows = np.atleast_1d(np.all((a == b) | (np.isnan(a) & np.isnan(b)), axis=-1))
    with np.errstate(invalid="ignore"):
        cosines = np.where(rows, 1.0, cosine(a, b))
    return float(np.min(np.nan_to_num(cosines, nan=-1.0), initial=1.0))


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two vectors."""
    import scipy.stats  # importing it takes longer than all else that a build without this metric imports

    return float(scipy.stats.spearmanr(a, b).statistic)


def correlation_error(value: float, count: int) -> float | None:
    """Standard error of a rank correlation of ``count`` pairs, None below 4 (Bonett and Wright, 2000)."""
    if count < 4 or math.isnan(value):
        return None
    return (1 - value**2) * math.sqrt((1 + value**2 / 2) / (count - 3))


def share(hits: Sequence[int], trials: Sequence[int]) -> tuple[float, float | None]:
    """Share of hits in the trials of all rows, and its standard error over rows: trials of one hang together.

    The error is that of a ratio of two sums over the rows (Cochran, Sampling Techniques, 2.11).
    """
    total, rows = sum(trials), len(trials)
    if total == 0:
        return math.nan, None
    value = sum(hits) / total
    if rows < 2:
        return value, None
    apart = sum((hit - value * trial) ** 2 for hit, trial in zip(hits, trials, strict=True))
    return value, math.sqrt(rows / (rows - 1) * apart) / total
