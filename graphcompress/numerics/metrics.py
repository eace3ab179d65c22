"""How far two arrays are apart, and how well predictions fit labels."""

from __future__ import annotations

import numpy as np
import scipy.stats

SQNR_CEILING_DB = 200.0
"""Reported for identical arrays, where the ratio is infinite."""

BLOCK = 1 << 20
"""Elements that are held in double precision at once."""


def sqnr_db(reference: np.ndarray, actual: np.ndarray) -> float:
    """Signal-to-quantisation-noise ratio 10·log10(Σ reference² / Σ (reference - actual)²), at most 200 dB."""
    wanted, seen = np.ravel(reference), np.ravel(actual)
    signal = noise = 0.0
    for start in range(0, wanted.size, BLOCK):
        block = wanted[start : start + BLOCK].astype(np.float64)
        signal += float(block @ block)
        block -= seen[start : start + BLOCK]
        noise += float(block @ block)
    return ratio_db(signal, noise)


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


def spearman(a: np.ndarray, b: np.ndarray) -> float:
    """Spearman's rank correlation of two vectors."""
    return float(scipy.stats.spearmanr(a, b).statistic)
