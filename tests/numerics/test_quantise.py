"""8-bit quantisation of arrays, streaming observers, smoothing: against plain NumPy."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import onnx
import pytest
from hypothesis import given
from hypothesis.extra.numpy import arrays
from onnx import TensorProto, helper

from graphcompress.files.runtime import session_of
from graphcompress.numerics.metrics import sqnr_db
from graphcompress.numerics.observers import BINS, Activation, Histogram, RowSample, quantisation
from graphcompress.numerics.quantise import (
    affine,
    quantise_blocks,
    quantise_columns,
    quantise_rows,
    quantise_weight,
    weight_scale,
)

FLOATS = st.floats(-1e4, 1e4, width=32)
WEIGHTS = arrays(
    np.float32, st.tuples(st.integers(1, 9), st.integers(1, 4)), elements=st.floats(-8, 8, width=32)
)
RNG = np.random.default_rng(0)


# ---- activations


@given(low=FLOATS, high=FLOATS, signed=st.booleans(), share=st.floats(0, 1))
def test_inside_the_range_the_error_is_at_most_half_a_step(low, high, signed, share):
    low, high = sorted((low, high))
    range_ = affine(low, high, signed=signed)
    value = np.float32(min(low, 0) + share * (max(high, 0) - min(low, 0)))
    tolerance = 1e-5 * abs(value)
    assert abs(range_.fake_quantise(value) - value) <= range_.scale * 0.5 + tolerance


@given(low=FLOATS, high=FLOATS, signed=st.booleans())
def test_zero_is_exact_and_the_zero_point_is_in_range(low, high, signed):
    range_ = affine(*sorted((low, high)), signed=signed)
    assert range_.fake_quantise(np.zeros(3)).tolist() == [0, 0, 0]
    assert range_.limits[0] <= range_.zero_point <= range_.limits[1]
    assert range_.scale > 0
    assert not signed or range_.zero_point == 0


def test_outside_the_range_values_saturate():
    range_ = affine(-1.0, 1.0, signed=False)
    assert range_.quantise(np.array([-50.0, 50.0])).tolist() == [0, 255]


@pytest.mark.parametrize("signed", [False, True])
def test_quantise_is_onnx_quantize_linear(signed):
    range_ = affine(-1.7, 4.2, signed=signed)
    values = np.concatenate([RNG.uniform(-3, 6, 500), np.arange(-20, 20) * range_.scale / 2]).astype(
        np.float32
    )
    kind, dtype = (TensorProto.INT8, np.int8) if signed else (TensorProto.UINT8, np.uint8)
    graph = helper.make_graph(
        [helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [None])],
        [helper.make_tensor_value_info("q", kind, [None])],
        [
            onnx.numpy_helper.from_array(np.array(range_.scale, np.float32), "scale"),
            onnx.numpy_helper.from_array(np.array(range_.zero_point, dtype), "zero"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    runtime = session_of(proto.SerializeToString()).run(None, {"x": values})[0]
    assert range_.quantise(values).tolist() == runtime.tolist()


# ---- weights


@given(weight=WEIGHTS, kind=st.sampled_from(["8bit", "7bit", "pairs"]))
def test_weights_lose_at_most_half_a_step_and_stay_in_their_bits(weight, kind):
    quantised = quantise_weight(weight, kind)
    assert quantised.values.shape == weight.shape
    assert quantised.scale.shape == weight.shape[1:]
    assert quantised.values.dtype == np.int8
    error = np.abs(quantised.dequantise() - weight)
    assert (error <= quantised.scale * 0.5 * (1 + 1e-5) + 1e-6 * np.abs(weight)).all()
    assert np.abs(quantised.values.astype(int)).max() <= (63 if kind == "7bit" else 127)


@given(weight=WEIGHTS)
def test_pairs_of_one_sign_never_exceed_128(weight):
    values = quantise_weight(weight, "pairs").values.astype(int)
    values = np.concatenate([values, np.zeros((len(values) % 2, values.shape[1]), int)])
    pairs = values.reshape(-1, 2, values.shape[1])
    assert np.maximum(pairs, 0).sum(1).max() <= 128
    assert np.maximum(-pairs, 0).sum(1).max() <= 128
    assert 255 * 128 < 2**15


def test_pairs_lose_less_than_seven_bits():
    weight = RNG.standard_normal((384, 64)).astype(np.float32)
    loss = {
        kind: sqnr_db(weight, quantise_weight(weight, kind).dequantise())
        for kind in ("8bit", "7bit", "pairs")
    }
    assert loss["8bit"] > loss["pairs"] > loss["7bit"] + 1.0


def test_a_channel_of_zeros_stays_zero():
    weight = np.zeros((4, 2), np.float32)
    weight[:, 1] = 3.0
    quantised = quantise_weight(weight)
    assert (quantised.dequantise()[:, 0] == 0).all()
    assert (weight_scale(weight) > 0).all()


def test_rows_columns_and_blocks():
    table = (
        RNG.standard_normal((64, 48)).astype(np.float32) * np.linspace(0.01, 3, 64, dtype=np.float32)[:, None]
    )
    rows, columns = quantise_rows(table), quantise_columns(table)
    assert rows.scale.shape == (64, 1)
    assert columns.scale.shape == (48,)
    assert sqnr_db(table[0], rows.dequantise()[0]) > sqnr_db(table[0], columns.dequantise()[0]) + 20
    blocks = quantise_blocks(table)
    assert blocks is not None
    assert blocks.values.shape == (24, 128)
    assert sqnr_db(table.reshape(24, 128), blocks.dequantise()) > 38
    assert quantise_blocks(np.ones(31)) is None
    assert quantise_blocks(np.ones(2 * 131)) is None


# ---- observers


def cut(values: np.ndarray, places: list[int]) -> list[np.ndarray]:
    return np.split(values, sorted({place % len(values) for place in places}))


@given(
    values=arrays(np.float32, st.integers(1, 60), elements=st.floats(-1e5, 1e5, width=32)),
    places=st.lists(st.integers(0, 100), max_size=5),
    backwards=st.booleans(),
)
def test_a_histogram_does_not_depend_on_batches_or_their_order(values, places, backwards):
    whole, streamed = Histogram(), Histogram()
    whole.update(values)
    for part in cut(values, places)[:: -1 if backwards else 1]:
        streamed.update(part)
    assert (streamed.low, streamed.high, streamed.width) == (whole.low, whole.high, whole.width)
    assert (streamed.bins == whole.bins).all()
    assert (whole.low, whole.high, whole.total) == (values.min(), values.max(), len(values))
    for method in ("minmax", "percentile", "mse"):
        assert quantisation(streamed, method, signed=False) == quantisation(whole, method, signed=False)


def test_a_histogram_counts_what_numpy_counts():
    values = np.random.default_rng(5).standard_normal(10_000).astype(np.float32)
    histogram = Histogram()
    for part in np.split(values, 10):
        histogram.update(part)
    assert histogram.counts.tolist() == np.histogram(values, histogram.edges)[0].tolist()
    ordered = np.sort(values)
    for share in (0.001, 0.3, 0.5, 0.999):
        rank = round(share * len(values))
        low, high = ordered[rank - 1] - histogram.width, ordered[rank] + histogram.width
        assert low <= histogram.quantile(share) <= high


def test_observers_keep_bounded_memory():
    activation = Activation()
    for scale in range(1, 40):
        activation.update(RNG.standard_normal((700, 8)).astype(np.float32) * 2.0**scale)
    assert activation.histogram.counts.shape == (2 * BINS,)
    assert activation.sample.rows.shape[0] <= activation.sample.capacity
    assert activation.peaks.shape == (8,)
    assert activation.histogram.total == 39 * 700 * 8


def test_values_that_are_not_finite_are_left_out():
    histogram = Histogram()
    histogram.update(np.array([np.nan, np.inf, -np.inf, 2.0, -1.0]))
    assert (histogram.low, histogram.high, histogram.total) == (-1.0, 2.0, 2)


def test_an_activation_that_is_always_zero():
    histogram = Histogram()
    histogram.update(np.zeros(9))
    for method in ("minmax", "percentile", "mse"):
        assert quantisation(histogram, method, signed=False).fake_quantise(np.zeros(2)).tolist() == [0, 0]
    assert histogram.total == 9


@pytest.mark.parametrize("largest", [1, 2, 4095, 4096, 2**20])
def test_an_activation_of_nothing_but_subnormal_numbers(largest):
    """Of numbers below 2^-126 a bin of a share of the largest would have a width that float32 calls zero."""
    step = float(np.finfo(np.float32).smallest_subnormal)
    values = (np.array([0, 1, largest // 2, largest]) * step).astype(np.float32)
    histogram = Histogram()
    histogram.update(values)
    assert histogram.total == 4
    assert histogram.high == largest * step
    assert histogram.counts.tolist() == np.histogram(values, histogram.edges)[0].tolist()
    for method in ("minmax", "percentile", "mse"):
        assert quantisation(histogram, method, signed=False).fake_quantise(values).tolist() == [0.0] * 4


def test_minmax_covers_everything_and_percentile_cuts_outliers():
    values = np.concatenate([RNG.standard_normal(100_000), [300.0]]).astype(np.float32)
    histogram = Histogram()
    histogram.update(values)
    covering = quantisation(histogram, "minmax", signed=False)
    cutting = quantisation(histogram, "percentile", signed=False, percentile=99.9)
    assert covering.scale * 255 == pytest.approx(300 - values.min(), rel=1e-4)
    assert cutting.scale * 255 < 8


@pytest.mark.parametrize("signed", [False, True])
def test_least_squares_is_at_least_as_good_as_minmax_and_close_to_brute_force(signed):
    values = (RNG.standard_normal(20_000) ** 3).astype(np.float32)
    histogram = Histogram()
    histogram.update(values)

    def error(range_) -> float:
        return float(np.mean((range_.fake_quantise(values) - values) ** 2))

    low, high = float(values.min()), float(values.max())
    shares = np.linspace(0.2, 1.0, 25)
    brute = min(error(affine(low * a, high * b, signed=signed)) for a in shares for b in shares)
    found = error(quantisation(histogram, "mse", signed=signed))
    assert found < error(quantisation(histogram, "minmax", signed=signed))
    assert found <= brute * 1.05


@given(
    rows=st.integers(1, 300), capacity=st.integers(2, 50), places=st.lists(st.integers(0, 300), max_size=6)
)
def test_a_row_sample_does_not_depend_on_batches(rows, capacity, places):
    values = np.arange(rows * 2, dtype=np.float32).reshape(rows, 2)
    whole, streamed = RowSample(capacity), RowSample(capacity)
    whole.update(values)
    for part in cut(values, places):
        streamed.update(part)
    assert streamed.rows.tolist() == whole.rows.tolist()
    assert min(rows, capacity // 2) <= len(whole.rows) <= capacity


def test_a_row_that_is_not_finite_leaves_no_trace() -> None:
    rows = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)
    spoilt = np.concatenate([rows, np.full((1, 4), np.nan, np.float32), [[1e9, np.inf, 0, 0]]])
    clean, seen = Activation(), Activation()
    clean.update(rows)
    seen.update(spoilt.astype(np.float32))
    np.testing.assert_array_equal(seen.peaks, clean.peaks)
    np.testing.assert_array_equal(seen.sample.rows, clean.sample.rows)
