"""Streamed second moments."""

from __future__ import annotations

import numpy as np

from graphcompress.numerics.moments import SecondMoment


def test_second_moments_do_not_depend_on_batches():
    tokens = np.random.default_rng(11).normal(size=(64, 5)).astype(np.float32)
    whole, parts = SecondMoment(5), SecondMoment(5)
    whole.update(tokens)
    for part in np.split(tokens, 8):
        parts.update(part.reshape(2, 4, 5))
    np.testing.assert_allclose(whole.total, parts.total, rtol=1e-5, atol=1e-5)
    assert whole.count == parts.count == 64
    np.testing.assert_array_equal(SecondMoment(3).matrix(), np.eye(3))
    spoilt = SecondMoment(3)
    spoilt.update(np.array([[1, 2, 3], [np.nan, 0, 0], [0, np.inf, 0]], np.float32))
    np.testing.assert_array_equal(spoilt.total, np.outer([1, 2, 3], [1, 2, 3]))
    assert spoilt.count == 1
    assert np.linalg.eigvalsh(SecondMoment(5).matrix()).min() > 0
