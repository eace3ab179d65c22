"""int8 of models that score tokens, where the first token has numbers far larger than all others."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from massive import INNER, massive_model, texts

from graphcompress.analysis.linears import linears
from graphcompress.data.samples import Samples
from graphcompress.files.runtime import Feed
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.verify import compare
from graphcompress.numerics.observers import LargestRows
from graphcompress.numerics.quantise import PerToken, quantise_weight
from graphcompress.passes.quantize.equalise import Equalisable, divide, equalisable
from graphcompress.passes.quantize.int8 import Int8
from graphcompress.passes.quantize.outliers import balancing
from graphcompress.plugin.context import Context
from graphcompress.plugin.record import Record
from graphcompress.rewrite.rewriter import Rewriter


def divergence(step: Int8, model: Model, samples: Samples | None = None) -> tuple[float, Record]:
    """What next tokens diverge by after ``step``, on texts that it has not seen, and its record."""
    feeds = list(texts(48).batches(8))[4:]
    with Runner(model) as runner:
        before = [runner(feed) for feed in feeds]
    record = step.run(model, Context(samples=samples))
    with Runner(model) as runner:
        found = compare(before, runner, feeds).divergence
    assert found is not None
    return found, record


def seen(model: Model, name: str, feed: Feed) -> np.ndarray:
    value = next(value for node in model.graph for value in node.outputs if value.name == name)
    with Runner(model, [value]) as runner:
        return runner(feed)[name]


def factors_of(model: Model, name: str) -> np.ndarray:
    """What the activation ``name`` was divided by."""
    node = next(node for node in model.graph for value in node.outputs if value.name == name)
    constant = next((value.const_value for value in node.inputs if value.const_value is not None), None)
    return np.ones(INNER, np.float32) if constant is None else 1.0 / constant.numpy()


def per_token(model: Model) -> list[str]:
    """Names of the activations that have a scale for each token."""
    peaks = [node for node in model.graph if node.op_type == "ReduceMax"]
    return [node.inputs[0].producer().inputs[0].name for node in peaks]


def test_a_divergence_that_is_allowed_keeps_static_ranges():
    for allowed, tamed in ((None, False), (0.01, True)):
        model = massive_model(300.0)
        divergence(Int8(smooth=False, max_model_error=None, max_divergence=allowed), model, texts())
        assert bool(per_token(model)) == tamed


def test_a_static_range_alone_costs_the_next_tokens():
    plain = Int8(max_model_error=None, max_divergence=None, smooth=False, max_error=1e9)
    assert divergence(plain, massive_model(), texts())[0] > 0.3
    assert divergence(plain, massive_model(1.0), texts())[0] < 0.01


@pytest.mark.parametrize("scheme", ["auto", "dynamic"])
@pytest.mark.parametrize("smooth", [True, False])
def test_massive_activations_keep_the_next_tokens_and_nothing_stays_in_float(scheme, smooth):
    samples = texts() if scheme == "auto" else None
    found, record = divergence(Int8(scheme=scheme, smooth=smooth), massive_model(), samples)
    assert found < 0.015
    assert [item.name for item in record.skipped] == ["table"]


def test_a_scale_per_token_computes_what_rounding_by_rows_says():
    model, samples = massive_model(300.0), texts()
    dense = {linear.name: linear.dense() for linear in linears(model)}
    (feed,) = texts(8).batches(8)
    divergence(Int8(smooth=False, max_divergence=0.01), model, samples)
    names = [name for name in per_token(model) if name.startswith("h")]
    assert names
    for name in names:
        layer = name[1:].removesuffix(".divided")
        factors = factors_of(model, name)
        weight = quantise_weight(dense[f"down{layer}"] * factors[:, None]).dequantise()
        expected = PerToken().fake_quantise(seen(model, name, feed)) @ weight
        np.testing.assert_allclose(seen(model, f"d{layer}.scaled", feed), expected, rtol=1e-4, atol=1e-4)


def test_balanced_features_lose_less_where_tokens_have_scales_of_their_own():
    """Half of what features differ by is moved into the weights, and no token is hurt by another's peak."""
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((200, 64)) * np.exp(rng.normal(0, 1.5, 64))
    weights = rng.standard_normal((64, 32)).astype(np.float32)
    factors = balancing(rows, weights)
    powers = np.mean(rows**2, axis=0) / np.mean(weights.astype(float) ** 2, axis=1)
    np.testing.assert_allclose(factors, powers**0.25, rtol=1e-5)

    def error(factors):
        low = quantise_weight(weights * factors[:, None]).dequantise()
        return np.linalg.norm(PerToken().fake_quantise(rows / factors) @ low - rows @ weights)

    assert error(factors) < 0.7 * error(np.ones(64, np.float32))
    assert (balancing(np.zeros((3, 2)), np.ones((2, 1))) == 1.0).all()


def test_rows_are_rounded_each_by_its_own_scale():
    rows = np.array([[1.0, -127.0, 0.4], [0.5, 0.24, -1.27e-3], [0.0, 0.0, 0.0]], np.float32)
    expected = [[1.0, -127.0, 0.0], [0.5, 61 * 0.5 / 127, 0.0], [0.0, 0.0, 0.0]]
    np.testing.assert_allclose(PerToken().fake_quantise(rows), expected, rtol=1e-6, atol=1e-9)


def test_the_largest_rows_are_kept_however_the_data_was_cut_up():
    rows = np.random.default_rng(0).standard_normal((100, 4)).astype(np.float32)
    whole, parts = LargestRows(capacity=3), LargestRows(capacity=3)
    whole.update(rows)
    for part in np.array_split(rows, 7):
        parts.update(part)
    wanted = rows[np.sort(np.argsort(-np.abs(rows).max(axis=1))[:3])]
    np.testing.assert_array_equal(whole.rows, wanted)
    np.testing.assert_array_equal(parts.rows, wanted)


def test_factors_move_through_a_gate_into_the_linear_before_it():
    model = massive_model()
    sources = {linear.output: linear for linear in linears(model)}
    down = next(linear for linear in linears(model) if linear.name == "down0")
    item = equalisable(down.input, [down], sources)
    assert isinstance(item, Equalisable)
    assert item.source is not None
    assert item.source.name == "up0"
    (feed,) = texts(8).batches(8)
    with Runner(model) as runner:
        before = runner(feed)["logits"]
    with Rewriter(model, Context()) as rw:
        divide(rw, [item], np.linspace(0.1, 9, INNER, dtype=np.float32))
    with Runner(model) as runner:
        np.testing.assert_allclose(runner(feed)["logits"], before, rtol=1e-3, atol=1e-3)


def test_what_another_node_reads_too_is_not_divided():
    model = massive_model()
    down = next(linear for linear in linears(model) if linear.name == "down0")
    up = next(linear for linear in linears(model) if linear.name == "up0")
    model.graph.outputs.append(up.output)
    up.output.type = ir.TensorType(ir.DataType.FLOAT)
    assert isinstance(equalisable(down.input, [down], {up.output: up}), str)


def test_smoothing_through_a_gate_lowers_what_a_large_feature_costs():
    costs = {}
    for smooth in (False, True):
        model = massive_model(1.0)
        for linear in linears(model):
            if linear.name.startswith(("up", "down")):
                array = linear.dense().copy()
                # The activation gets a feature a hundred times as large, and its reader divides it again.
                large = np.s_[:, 7] if linear.name.startswith("up") else np.s_[7]
                array[large] *= 100.0 if linear.name.startswith("up") else 0.01
                linear.weight.const_value = ir.tensor(array)
        step = Int8(max_model_error=None, max_divergence=None, max_error=1e9, smooth=smooth)
        costs[smooth], _ = divergence(step, model, texts())
    assert costs[True] < 0.1 * costs[False]
