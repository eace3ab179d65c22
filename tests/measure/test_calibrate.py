"""Calibration: padding never counts, batches and portions change nothing."""

from __future__ import annotations

import numpy as np
import pytest

from graphcompress.analysis.linears import linears
from graphcompress.data.load import Samples
from graphcompress.graph.model import Model
from graphcompress.measure import calibrate
from graphcompress.measure.calibrate import equal_batches, observe, real_tokens, too_few
from graphcompress.measure.memory import MOST
from graphcompress.numerics.observers import Activation


def observed(model: Model, samples: Samples) -> dict[str, Activation]:
    seen = {linear.input: Activation() for linear in linears(model)}
    observe(model, seen, samples)
    return {value.name or "": activation for value, activation in seen.items()}


def padded(samples: Samples, size: int) -> Samples:
    """The same samples, filled up to ``size`` tokens beforehand, as a user's arrays may be."""

    def fill(array: np.ndarray) -> np.ndarray:
        return np.concatenate([array, np.zeros(size - len(array), array.dtype)])

    return Samples([{name: fill(array) for name, array in feed.items()} for feed in samples.feeds])


def test_padding_never_changes_a_range(tiny_bert, tiny_samples):
    plain, full = observed(tiny_bert, tiny_samples), observed(tiny_bert, padded(tiny_samples, 32))
    assert plain.keys() == full.keys()
    for name, activation in plain.items():
        assert activation.histogram.total == full[name].histogram.total
        for figure in ("low", "high"):
            expected = getattr(activation.histogram, figure)
            assert getattr(full[name].histogram, figure) == pytest.approx(expected, rel=1e-4, abs=1e-4)
        np.testing.assert_allclose(full[name].peaks, activation.peaks, rtol=1e-3, atol=1e-4)


def test_batches_hold_equal_shapes_and_every_sample_once():
    lengths = [5, 3, 5, 9, 3, *([7] * (MOST + 2))]
    samples = Samples([{"x": np.zeros(length), "y": np.zeros((length, 2))} for length in lengths])
    batches = list(equal_batches(samples))
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(len({lengths[index] for index in batch}) == 1 for batch in batches)
    assert max(map(len, batches)) == MOST


def test_values_are_fetched_in_portions_with_the_same_result(tiny_bert, tiny_samples, monkeypatch):
    whole = observed(tiny_bert, tiny_samples)
    monkeypatch.setattr(calibrate, "MEMORY_BYTES", 1)
    for name, activation in observed(tiny_bert, tiny_samples).items():
        assert activation.histogram.high == pytest.approx(whole[name].histogram.high, rel=1e-5)
        assert activation.histogram.total == whole[name].histogram.total


def test_progress_ends_at_its_total(tiny_bert, tiny_samples):
    steps = []
    seen = {linear.input: Activation() for linear in linears(tiny_bert)}
    observe(tiny_bert, seen, tiny_samples, progress=lambda text, done, total: steps.append((done, total)))
    assert steps[-1][0] == steps[-1][1] > 1
    assert steps == sorted(steps)


MASK = np.array([[1, 1, 0], [1, 0, 0]])
VALUES = np.arange(12.0).reshape(2, 3, 2)


@pytest.mark.parametrize(
    ("array", "expected"),
    [
        (VALUES, [[0, 1], [2, 3], [6, 7]]),
        (VALUES.transpose(1, 0, 2), [[0, 1], [6, 7], [2, 3]]),
        (VALUES.reshape(6, 2), [[0, 1], [2, 3], [6, 7]]),
        (np.ones((2, 4)), [[1, 1, 1, 1], [1, 1, 1, 1]]),
    ],
    ids=["batch first", "sequence first", "flattened", "per sample"],
)
def test_masked_positions_are_left_out_in_every_layout(array, expected):
    assert real_tokens(array, {"attention_mask": MASK}).tolist() == expected


def test_without_a_mask_tokens_are_joined():
    assert real_tokens(VALUES, {"x": VALUES}).shape == (6, 2)


@pytest.mark.parametrize(
    ("seen", "expected"),
    [
        ([], ""),
        ([(64, 128)], ""),
        (
            [(384, 960), (1536, 960), (384, 100)],
            "too little data: the refit of 384 features saw 100 tokens; 768 would do",
        ),
        (
            [(1536, 960)],
            "too little data: the refit of 1,536 features saw 960 tokens; 3,072 would do",
        ),
    ],
)
def test_too_little_data_is_named_with_the_count_that_would_do(seen, expected):
    assert too_few("the refit", seen) == expected
