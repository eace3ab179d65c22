"""Orthonormal bases that a residual stream is turned to."""

from __future__ import annotations

import numpy as np


def basis(moment: np.ndarray, width: int, *, centred: bool) -> np.ndarray:
    """[features, width] orthonormal columns: the largest axes of ``moment``.

    With ``centred`` the direction (1, …, 1) of the features becomes that of the ``width`` columns, which a
    mean over them takes off again.
    """
    features = len(moment)
    if not centred:
        return _axes(moment, width)
    ones = np.full((features, 1), features**-0.5)
    beside = np.eye(features) - ones @ ones.T
    columns = np.concatenate([ones, _axes(beside @ moment @ beside, width - 1)], axis=1)
    # A reflection that swaps the first unit vector with (1, …, 1) / √width.
    mirror = np.full(width, width**-0.5)
    mirror[0] -= 1.0
    length = float(mirror @ mirror)
    turned = np.eye(width) - (2 / length if length else 0.0) * np.outer(mirror, mirror)
    found: np.ndarray = columns @ turned
    return found


def _axes(moment: np.ndarray, count: int) -> np.ndarray:
    """[features, count] eigenvectors of the largest eigenvalues; the largest entry of each is positive."""
    vectors = np.linalg.eigh(moment)[1][:, ::-1][:, :count]
    signs = np.sign(vectors[np.abs(vectors).argmax(axis=0), np.arange(vectors.shape[1])])
    found: np.ndarray = vectors * signs
    return found
