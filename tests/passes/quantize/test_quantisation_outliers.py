"""int8 where a few features of an activation are far larger than the others: the outputs must survive."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphcompress.analysis.linears import linears
from graphcompress.data.load import Samples
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.numerics.metrics import row_sqnr_db, sqnr_db
from graphcompress.numerics.observers import Activation
from graphcompress.passes.quantize.decide import LinearForm, Plan, Rounding, decide, tame_outliers
from graphcompress.passes.quantize.int8 import Int8
from graphcompress.passes.quantize.outliers import capping, smoothing
from graphcompress.passes.quantize.search import fewest_in_float
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context
from graphcompress.plugin.record import Record

WIDTH, BLOCKS = 64, 4
SCHEME = Rounding("8bit", ("minmax", "percentile", "mse"), 99.99, signed=False, static=True)


def residual_model(path: Path, outlier: float) -> Model:
    """Blocks of x → LayerNormalization → + two linears with a Relu between, whose gains hold two outliers.

    The rows of the weights that read them are as much smaller, so that ``outlier`` changes no output, and the
    residual path reads the normalised value too: no factor can be moved into its gain.
    """
    rng = np.random.default_rng(0)
    arrays: dict[str, np.ndarray] = {}
    nodes: list[onnx.NodeProto] = []
    grown = np.ones(WIDTH, np.float32)
    grown[[5, 40]] = outlier
    x = "x"
    for index in range(BLOCKS):
        up = rng.standard_normal((WIDTH, 2 * WIDTH)).astype(np.float32) / 8
        down = rng.standard_normal((2 * WIDTH, WIDTH)).astype(np.float32) / 8
        arrays |= {f"g{index}": grown, f"up{index}": up / grown[:, None], f"down{index}": down}
        arrays |= {f"s{index}": np.zeros(WIDTH, np.float32), f"shrink{index}": 1 / grown}
        names = {key: f"{key}{index}" for key in ("n", "h", "r", "d", "e", "y")}
        steps = [
            ("LayerNormalization", [x, f"g{index}", f"s{index}"], "n"),
            ("MatMul", [names["n"], f"up{index}"], "h"),
            ("Relu", [names["h"]], "r"),
            ("MatMul", [names["r"], f"down{index}"], "d"),
            ("Mul", [names["n"], f"shrink{index}"], "e"),
            ("Add", [names["d"], names["e"]], "y"),
        ]
        nodes += [helper.make_node(op, inputs, [names[out]], name=names[out]) for op, inputs, out in steps]
        x = names["y"]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence", WIDTH])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9), path)
    return Model.load(path)


@pytest.fixture(scope="module")
def samples() -> Samples:
    rng = np.random.default_rng(1)
    return Samples([{"x": rng.standard_normal((6 + i % 3, WIDTH)).astype(np.float32)} for i in range(32)])


@pytest.fixture
def outliers(tmp_path: Path) -> Callable[[float], Model]:
    return lambda size: residual_model(tmp_path / f"{size}.onnx", size)


def quantised_db(model: Model, step: Int8, samples: Samples | None, feed: Samples) -> tuple[float, Record]:
    """SQNR of the outputs after ``step``, and its record."""
    batch = feed.batch(range(8))
    with Runner(model) as runner:
        (before,) = runner(batch).values()
    record = step.run(model, Context(samples=samples))
    with Runner(model) as runner:
        (after,) = runner(batch).values()
    return sqnr_db(before, after), record


def ops(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


# ---- dividing outlier features


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_outlier_features_do_not_cost_the_outputs(outliers, samples, scheme):
    model = outliers(100.0)
    plain, _ = quantised_db(
        model.clone(),
        Int8(scheme=scheme, max_model_error=None, max_divergence=None, max_error=1e10),
        samples,
        samples,
    )
    kept, record = quantised_db(model, Int8(scheme=scheme), samples, samples)
    assert plain < 12
    assert kept > 20
    assert len(record.touched) == 2 * BLOCKS
    assert any("divided by a factor per feature" in note for note in record.notes)


def test_what_an_outlier_alone_keeps_from_int8_is_not_left_in_float(outliers, samples):
    _, plain = quantised_db(
        outliers(100.0), Int8(max_model_error=None, max_divergence=None), samples, samples
    )
    _, kept = quantised_db(outliers(100.0), Int8(max_model_error=0.56), samples, samples)
    assert any("its own error" in item.reason for item in plain.skipped)
    assert kept.skipped == ()


def test_outliers_are_found_without_samples_too(outliers, samples):
    kept, record = quantised_db(outliers(100.0), Int8(), None, samples)
    assert kept > 20
    assert len(record.touched) == 2 * BLOCKS


def test_a_model_without_outliers_gets_no_more_operators(outliers, samples):
    model = outliers(1.0)
    kept, record = quantised_db(model, Int8(), samples, samples)
    assert kept > 20
    assert ops(model)["Mul"] == BLOCKS
    assert not any("divided" in note for note in record.notes)


def test_the_same_input_gives_the_same_bytes_and_a_second_run_changes_nothing(outliers, samples, tmp_path):
    model = outliers(100.0)
    twin = model.clone()
    for name, each in (("a", model), ("b", twin)):
        Int8().run(each, Context(samples=samples))
        each.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()
    assert Int8().run(model, Context(samples=samples)).touched == ()


def test_an_expression_takes_the_factors_too(outliers, samples):
    model = outliers(100.0)
    Pipeline.parse("kron{rank=32 max_error=1}").run(model, Context(samples=samples), allow=["kron"])
    assert any(linear.weight.const_value is None for linear in linears(model))
    kept, record = quantised_db(model, Int8(max_model_error=0.126), samples, samples)
    assert kept > 17  # judged on other samples
    assert any("grown" in (value.name or "") for node in model.graph for value in node.outputs)
    assert len(record.touched) >= 2 * BLOCKS - 1
    assert "stays an expression" in {item.detail for item in record.touched}


# ---- leaving linears in float


def test_what_the_outputs_cannot_bear_stays_in_float_with_the_figure(outliers, samples):
    model = outliers(100.0)
    kept, record = quantised_db(model, Int8(max_model_error=0.01), samples, samples)
    left = [item for item in record.skipped if "above max_model_error 0.01" in item.reason]
    assert kept > 37  # judged on other samples
    assert 0 < len(left) < 2 * BLOCKS
    assert all(item.figures["error"] > 1e-3 for item in left)
    assert len(left) + len(record.touched) == 2 * BLOCKS
    assert ops(model)["QuantizeLinear"] == len(record.touched)


def plan_of(outliers: Callable[[float], Model], samples: Samples, cap: bool = False) -> list[LinearForm]:
    model = outliers(100.0)
    chosen = linears(model)
    seen = {linear.input: Activation() for linear in chosen}
    with Runner(model, list(seen)) as runner:
        for activation, array in zip(seen.values(), runner(samples.batch(range(8))).values(), strict=True):
            activation.update(array)
    forms = decide(chosen, seen, SCHEME)
    return tame_outliers(forms, seen, SCHEME) if cap else forms


def test_dividing_is_decided_for_the_activations_that_need_it(outliers, samples):
    plain, divided = (plan_of(outliers, samples, cap) for cap in (False, True))
    assert [form.weight.factors is not None for form in divided] == [True, False] * BLOCKS
    for before, after in zip(plain, divided, strict=True):
        assert after.row_error <= before.row_error


@pytest.mark.parametrize("guilty", [(0,), (3,), (0, 7), (2, 3, 4), tuple(range(8))])
def test_the_search_leaves_out_the_guilty_and_few_others(outliers, samples, guilty):
    plan = Plan(plan_of(outliers, samples), [])
    blamed = {plan.linears[index].linear.node for index in guilty}

    def measure(tried: Plan) -> float:
        return 0.3 if blamed & {form.linear.node for form in tried.linears} else 0.1

    choice = fewest_in_float(plan, 0.2, measure)
    left = {form.linear.node for form in choice.left}
    assert blamed <= left
    assert len(left) == len(blamed)
    assert len(choice.plan.linears) + len(left) == len(plan.linears)


def test_the_search_gives_back_what_costs_most_for_its_bytes(outliers, samples):
    """Own errors rank the wrong way round; what the outputs lose with a form alone is what counts."""
    plan = Plan(plan_of(outliers, samples), [])
    worst = sorted(plan.linears, key=lambda form: form.row_error)
    costs = {form.linear.node: 0.5**rank for rank, form in enumerate(worst)}
    runs = []

    def measure(tried: Plan) -> float:
        runs.append(tried)
        return 0.1 + sum(costs[form.linear.node] * form.linear.parameters for form in tried.linears)

    allowed = 0.1 + sum(costs[form.linear.node] * form.linear.parameters for form in worst[2:])
    choice = fewest_in_float(plan, allowed, measure, base=0.1)
    assert [form.linear.name for form in choice.left] == [form.linear.name for form in worst[:2]]
    assert len(runs) < 24


# ---- numerics


def test_capping_brings_the_largest_features_down_to_the_next():
    factors = capping(np.array([1, 50, 2, 8, 0], np.float32), 2)
    np.testing.assert_array_equal(factors, [1, 25, 1, 4, 1])
    np.testing.assert_array_equal(capping(np.zeros(3, np.float32), 1), np.ones(3))


def test_rows_count_alike():
    exact = np.ones((100, 4))
    exact[0] = 1e4
    noisy = exact + 0.5
    assert sqnr_db(exact, noisy) > 60
    assert row_sqnr_db(exact, noisy) < 45
    assert row_sqnr_db(np.ones((3, 4)), np.ones((3, 4)) * 1.1) == pytest.approx(20)
    assert row_sqnr_db(np.zeros((3, 4)), np.zeros((3, 4))) == 200


def test_statistics_of_a_divided_activation_cover_all_that_was_seen():
    rng = np.random.default_rng(2)
    array = rng.standard_normal((3000, 8)).astype(np.float32)
    array[1777, 3] = -40.0
    activation = Activation()
    activation.update(array)
    factors = np.array([1, 1, 1, 10, 1, 1, 1, 2], np.float32)
    divided = activation.divided(factors)
    assert divided.histogram.low == pytest.approx(float((array / factors).min()))
    assert divided.histogram.high == pytest.approx(float((array / factors).max()))
    np.testing.assert_allclose(divided.peaks, np.abs(array / factors).max(axis=0), rtol=1e-6)


def test_smoothing_changes_no_product_and_evens_out_features():
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 12)).astype(np.float32)
    rows[:, 3] *= 100
    rows[:, 7] = 0
    weight = rng.standard_normal((12, 5)).astype(np.float32)
    peaks = np.abs(rows).max(0)
    factors = smoothing(peaks, np.abs(weight).max(1), 0.5)
    assert factors[7] == 1.0
    np.testing.assert_allclose(
        (rows / factors) @ (weight * factors[:, None]), rows @ weight, rtol=1e-4, atol=1e-4
    )
    assert (peaks / factors).max() < peaks.max() / 5
