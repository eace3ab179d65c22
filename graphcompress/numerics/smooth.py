"""Moves outliers of an activation into the weights that read it (SmoothQuant, arXiv:2211.10438, eq. 4)."""

from __future__ import annotations

import numpy as np

SMALLEST = 1e-5


def smoothing(activation_peaks: np.ndarray, weight_peaks: np.ndarray, alpha: float) -> np.ndarray:
    """Factor per feature [features]: activations are divided by it, rows of the weights multiplied.

    ``alpha`` (0-1) says how much of the difficulty moves to the weights; features that never carry anything
    get 1.
    """
    activation = np.maximum(activation_peaks.astype(np.float64), SMALLEST)
    weight = np.maximum(weight_peaks.astype(np.float64), SMALLEST)
    factors = activation**alpha / weight ** (1.0 - alpha)
    return np.where(activation_peaks > 0, np.maximum(factors, SMALLEST), 1.0).astype(np.float32)
