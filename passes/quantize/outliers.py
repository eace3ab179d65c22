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


def balancing(rows: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Factor per feature [features]: the root of how large it mostly is over how large its weights are.

    That is :func:`smoothing` with ``alpha`` 0.5, of root mean squares instead of peaks. Where every token of
    ``rows`` [tokens, features] has a scale of its own, and every column of ``weights`` [features, out], not
    the peak of a feature decides but what it mostly is.
    """
    powers = [
        np.mean(np.square(array, dtype=np.float64), axis=axis) for array, axis in ((rows, 0), (weights, 1))
    ]
    activation, weight = (np.sqrt(power) for power in powers)
    used = (activation > 0) & (weight > 0)
    factors = np.sqrt(np.divide(activation, weight, out=np.ones_like(activation), where=used))
    found: np.ndarray = np.maximum(factors, SMALLEST).astype(np.float32)
    return found
