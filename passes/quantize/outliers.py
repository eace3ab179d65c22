"""Factors per feature that move the outliers of an activation into the weights that read it."""

from __future__ import annotations

import numpy as np

SMALLEST = 1e-5
"""Peaks and factors are at least this large, as in the reference code of SmoothQuant, so that nothing is
divided by zero."""


def smoothing(activation_peaks: np.ndarray, weight_peaks: np.ndarray, alpha: float) -> np.ndarray:
    """Factor per feature [features]: activations are divided by it, rows of the weights multiplied.

    SmoothQuant (arXiv:2211.10438), equation 4.

    ``alpha`` (0-1) says how much of the difficulty moves to the weights; features that never carry anything
    get 1.
    """
    # A peak of zero would make the factor zero or infinite.
    activation = np.maximum(activation_peaks.astype(np.float64), SMALLEST)
    weight = np.maximum(weight_peaks.astype(np.float64), SMALLEST)
    factors = activation**alpha / weight ** (1.0 - alpha)
    return np.where(activation_peaks > 0, np.maximum(factors, SMALLEST), 1.0).astype(np.float32)


def capping(peaks: np.ndarray, count: int) -> np.ndarray:
    """Factor per feature [features] that brings the ``count`` largest features down to the next one.

    All other factors are 1. Only weights of the few outlier features grow, so what the weights lose is far
    less than what the activation gains.
    """
    limit = max(float(np.sort(peaks)[-1 - count]), SMALLEST)
    return np.maximum(peaks / np.float32(limit), 1.0).astype(np.float32)


def balancing(rows: np.ndarray) -> np.ndarray:
    """Factor per feature [features]: the root of its root mean square over ``rows`` [tokens, features].

    Half of what features differ by moves into the weights, as with ``alpha`` 0.5 of :func:`smoothing`. Where
    every token has a scale of its own, not the peak of a feature decides but what it mostly is.
    """
    power = np.sqrt(np.mean(np.square(rows, dtype=np.float64), axis=0))
    return np.where(power > 0, np.maximum(np.sqrt(power), SMALLEST), 1.0).astype(np.float32)
