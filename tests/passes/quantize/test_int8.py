"""int8: emitted graphs against exact integer arithmetic, fusion in the runtime, reasons for what is left."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from hypothesis import given
from onnx import TensorProto, helper, numpy_helper
from strategies import instances

from graphcompress.analysis.linears import linears
from graphcompress.data.load import Samples
from graphcompress.data.made_up import synthetic_samples, varied_samples
from graphcompress.errors import UsageError
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.invariance import batch_invariance
from graphcompress.numerics.metrics import error_at, sqnr_db
from graphcompress.numerics.quantise import Affine, affine, quantise_weight
from graphcompress.passes.quantize.equalise import Equalisable, divide, equalisable
from graphcompress.passes.quantize.int8 import Int8
from graphcompress.passes.quantize.lowbit import LowBitWeight
from graphcompress.passes.quantize.qdq import QdqWriter
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.context import Context
from graphcompress.plugin.record import Record
from graphcompress.plugin.schemes import INT8, UINT8, integer_products
from graphcompress.rewrite.rewriter import Rewriter

SATURATES = Capabilities(integer_products(UINT8, INT8, dynamic=True, weight_bits=7))
RNG = np.random.default_rng(0)
Arrays = dict[str, np.ndarray]


def model_of(
    path: Path,
    nodes: Sequence[onnx.NodeProto],
    arrays: Arrays,
    features: int = 32,
    outputs: Sequence[str] = ("y",),
) -> Model:
    """A model of one input x [batch, sequence, features]."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", "sequence", features])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.save(proto, path)
    return Model.load(path)


def weight(*shape: int) -> np.ndarray:
    return RNG.standard_normal(shape).astype(np.float32)


def floats(features: int = 32, count: int = 12) -> Samples:
    return Samples([{"x": weight(5 + index % 3, features)} for index in range(count)])


def node(op_type: str, inputs: str, output: str, **attributes: object) -> onnx.NodeProto:
    return helper.make_node(op_type, inputs.split(), [output], name=f"node_{output}", **attributes)


def run(step: Int8, model: Model, samples: Samples | None, target: Capabilities = SATURATES) -> Record:
    return step.run(model, Context(samples=samples, capabilities=target))


def ops(model: Model) -> Counter[str]:
    return Counter(node.op_type for node in model.graph)


def fused_ops(model: Model, folder: Path) -> Counter[str]:
    """Operators of the graph that ONNX Runtime makes of ``model`` at its default level."""
    source, result = folder / "source.onnx", folder / "fused.onnx"
    model.save(source)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(result)
    onnxruntime.InferenceSession(source, options, providers=["CPUExecutionProvider"])
    return Counter(node.op_type for node in onnx.load(result).graph.node)


@pytest.fixture
def one_linear(tmp_path: Path) -> Callable[..., Model]:
    """y = x · w + b."""

    def make(array: np.ndarray, op: str = "MatMul") -> Model:
        arrays = {"w": array, "b": weight(array.shape[1])}
        nodes = [node("MatMul", "x w", "p"), node("Add", "p b", "y")]
        if op == "Gemm":
            arrays["w"] = np.ascontiguousarray(array.T)
            arrays["rows"] = np.array([-1, array.shape[0]])
            nodes = [node("Reshape", "x rows", "flat"), node("Gemm", "flat w b", "y", transB=1)]
        return model_of(tmp_path / f"{op}.onnx", nodes, arrays, array.shape[0])

    return make


# ---- the emitted graph is integer arithmetic


def integer_product(x: np.ndarray, range_: Affine, low: LowBitWeight, bias: np.ndarray) -> np.ndarray:
    """What an exact kernel computes: int32 sums, then one multiplication by both scales."""
    sums = (range_.quantise(x) - range_.zero_point) @ low.quantised.values.astype(np.int32)
    return sums.astype(np.float64) * range_.scale * low.quantised.scale + bias


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
@pytest.mark.parametrize("kind", ["pairs", "7bit"])
@pytest.mark.parametrize("rows", [1, 2, 37])
@pytest.mark.parametrize("worst", [False, True])
def test_static_form_is_exact_also_where_products_would_saturate(one_linear, optimize, op, kind, rows, worst):
    array = weight(65, 48)
    if worst:
        array = np.repeat(np.sign(weight(33, 48)), 2, axis=0)[:65]
    model = one_linear(array, op)
    bias = model.graph.initializers["b"].const_value.numpy()
    range_ = affine(0.0 if worst else -2.0, 2.0, signed=False)
    (linear,) = linears(model)
    low = LowBitWeight(quantise_weight(linear.dense(), kind))
    with Rewriter(model, Context()) as rw:
        QdqWriter(rw).static(linear, range_, low)
    x = np.full((1, rows, 65), 2.0, np.float32) if worst else weight(1, rows, 65)
    with Runner(model, optimize=optimize) as runner:
        (actual,) = runner({"x": x}).values()
    expected = integer_product(x, range_, low, bias).reshape(actual.shape)
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-4)


@pytest.mark.parametrize("optimize", [False, True])
@pytest.mark.parametrize("op", ["MatMul", "Gemm"])
def test_dynamic_form_is_integer_arithmetic(one_linear, optimize, op):
    model = one_linear(weight(64, 48), op)
    dense = linears(model)[0].dense()
    bias = model.graph.initializers["b"].const_value.numpy()
    run(Int8(scheme="dynamic"), model, None)
    x = weight(1, 7, 64)
    range_ = affine(float(x.min()), float(x.max()), signed=False)
    low = LowBitWeight(quantise_weight(dense, "pairs"))
    with Runner(model, optimize=optimize) as runner:
        (actual,) = runner({"x": x}).values()
    expected = integer_product(x, range_, low, bias).reshape(actual.shape)
    assert sqnr_db(expected, actual) > 55
    assert ops(model)["MatMul"] == ops(model)["Gemm"] == 0


def test_signed_activations_have_zero_points_of_zero(one_linear):
    model = one_linear(weight(32, 32))
    run(Int8(), model, floats(), Capabilities(integer_products(INT8)))
    zero_points = [n.inputs[2].const_value.numpy() for n in model.graph if n.op_type == "QuantizeLinear"]
    assert [(z.dtype, int(z)) for z in zero_points] == [(np.int8, 0)]


# ---- a whole model


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_every_linear_of_a_bert_becomes_one_integer_kernel(tiny_bert, tiny_samples, tmp_path, scheme):
    count = len(linears(tiny_bert))
    inputs = len({linear.input for linear in linears(tiny_bert)})
    record = run(Int8(scheme=scheme, max_error=1e10), tiny_bert, tiny_samples)
    assert sum("embeddings" not in item.name for item in record.touched) == count
    assert ops(tiny_bert)["QuantizeLinear"] + ops(tiny_bert)["DynamicQuantizeLinear"] == inputs
    fused = fused_ops(tiny_bert, tmp_path)
    assert fused["MatMulIntegerToFloat"] + fused["QLinearMatMul"] + fused["DynamicQuantizeMatMul"] == count
    assert fused["MatMulInteger"] == fused["Gemm"] == 0


def test_static_answers_do_not_depend_on_batch_mates_and_dynamic_ones_are_said_to(tiny_bert, tiny_samples):
    dynamic, note = tiny_bert.clone(), "changes a little with its batch mates"
    assert not any(note in text for text in run(Int8(), tiny_bert, tiny_samples).notes)
    assert any(note in text for text in run(Int8(), dynamic, None).notes)
    moved = []
    for model in (tiny_bert, dynamic):
        with Runner(model) as runner:
            moved.append(batch_invariance(runner, tiny_samples, tolerance=0.02))
    assert moved[0].changed == 0
    assert moved[1].max_relative_error > moved[0].max_relative_error


def test_the_contract_holds_and_attention_is_listed(tiny_bert, tiny_samples):
    ctx = Context(samples=tiny_samples, capabilities=SATURATES)
    (record,) = Pipeline([Int8()]).run(tiny_bert, ctx)
    assert record.broken is None
    assert any("products of two activations" in note for note in record.notes)
    assert all(item.figures["error"] < 0.1 for item in record.touched)
    assert record.size.bytes_on_disk < Model.load(tiny_bert.path).weight_bytes


def test_the_same_input_gives_the_same_bytes(tiny_bert, tiny_samples, tmp_path):
    twin = tiny_bert.clone()
    for name, model in (("a", tiny_bert), ("b", twin)):
        run(Int8(), model, tiny_samples)
        model.save(tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_applied_twice_it_changes_nothing(tiny_bert, tiny_samples, tmp_path):
    run(Int8(), tiny_bert, tiny_samples)
    tiny_bert.save(tmp_path / "once")
    again = run(Int8(), tiny_bert, tiny_samples)
    tiny_bert.save(tmp_path / "twice")
    assert again.touched == ()
    assert {item.reason for item in again.skipped} == {
        "it is quantised already",
        "smaller than 4,096 parameters",
    }
    assert (tmp_path / "once").read_bytes() == (tmp_path / "twice").read_bytes()


# ---- what is left alone, and why


def test_narrow_linears_stay(one_linear):
    record = run(Int8(), one_linear(weight(64, 8)), floats(64))
    assert [item.reason for item in record.skipped] == [
        "narrower than 16: an int8 product would not be faster"
    ]


def test_a_linear_above_the_wanted_error_stays_and_says_its_figure(one_linear):
    model = one_linear(weight(32, 32))
    (skipped,) = run(Int8(max_error=3e-5), model, floats()).skipped
    assert skipped.reason == "its own error in int8 is above max_error 3e-05"
    assert 3e-5 < skipped.figures["error"] < 0.1
    assert ops(model) == {"MatMul": 1, "Add": 1}


def test_a_linear_that_no_sample_reaches_stays(tiny_bert, tiny_samples):
    masked = [
        {**feed, "attention_mask": np.zeros_like(feed["attention_mask"])} for feed in tiny_samples.feeds
    ]
    with np.errstate(invalid="ignore"):
        record = run(Int8(embeddings=False, max_model_error=None), tiny_bert, Samples(masked))
    assert record.touched == ()
    assert len(record.skipped) == 12
    assert all("range is unknown" in item.reason for item in record.skipped)


def test_layers_are_chosen_by_name(tiny_bert, tiny_samples):
    record = run(Int8(only="*query*", embeddings=False), tiny_bert, tiny_samples)
    assert len(record.touched) == 2
    assert all("query" in item.name for item in record.touched)


def test_a_weight_that_something_else_reads_stays(tmp_path):
    nodes = [node("MatMul", "x w", "p"), node("ReduceSum", "w", "s"), node("Add", "p s", "y")]
    record = run(Int8(), model_of(tmp_path / "m", nodes, {"w": weight(32, 32)}), floats())
    assert [item.reason for item in record.skipped] == [
        "its weight is also read by a ReduceSum, which needs it in float"
    ]


def test_without_samples_static_is_refused_and_auto_is_dynamic(tiny_bert):
    with pytest.raises(UsageError, match="--data"):
        run(Int8(scheme="static"), tiny_bert, None)
    run(Int8(), tiny_bert, synthetic_samples(tiny_bert))
    assert ops(tiny_bert)["DynamicQuantizeLinear"] == 8


@pytest.mark.parametrize(
    ("step", "calibrated", "reason"),
    [
        (Int8(), False, "--data"),
        (Int8(scheme="dynamic"), True, "change scheme to static"),
        (Int8(activations="uint8"), True, "change activations"),
        (Int8(), True, None),
    ],
)
def test_what_a_target_cannot_run_is_said_with_the_option_to_change(step, calibrated, reason):
    symmetric = Capabilities(integer_products(INT8))
    said = step.unsupported(symmetric, calibrated=calibrated)
    assert said is None if reason is None else reason in said


def test_activations_are_signed_on_request(one_linear):
    model = one_linear(weight(32, 32))
    run(Int8(activations="int8"), model, floats())
    zero_points = [n.inputs[2].const_value.numpy() for n in model.graph if n.op_type == "QuantizeLinear"]
    assert [z.dtype for z in zero_points] == [np.int8]


# ---- weights used twice, embeddings, expressions


def test_a_weight_used_by_two_linears_is_stored_once(tmp_path):
    nodes = [node("MatMul", "x w", "h"), node("Relu", "h", "r"), node("MatMul", "r w", "y")]
    model = model_of(tmp_path / "m", nodes, {"w": weight(32, 32)})
    assert len(run(Int8(), model, floats()).touched) == 2
    assert [v.shape for v in model.initializers() if v.dtype.name == "INT8" and len(v.shape) == 2] == [
        (32, 32)
    ]
    assert ops(model)["DequantizeLinear"] == 4


@pytest.mark.parametrize("spread", [1.0, 100.0])
def test_embeddings_are_gathered_in_int8(tmp_path, spread):
    table = RNG.uniform(-1, 1, (300, 32)).astype(np.float32)
    table *= np.linspace(1, spread, 300, dtype=np.float32)[:, None]
    nodes = [node("Cast", "x", "i", to=TensorProto.INT64), node("Gather", "t i", "y")]
    model = model_of(tmp_path / "m", nodes, {"t": table}, 3)
    (touched,) = run(Int8(), model, None).touched
    feed = {"x": RNG.integers(0, 300, (2, 5, 3)).astype(np.float32)}
    with Runner(model) as runner:
        (rows,) = runner(feed).values()
    expected = table[feed["x"].astype(int)]
    assert touched.detail == ("one scale per row" if spread > 1 else "one scale per column")
    assert error_at(sqnr_db(expected, rows)) == pytest.approx(touched.figures["error"], rel=0.2)
    assert touched.figures["error"] < 0.016
    assert model.weight_bytes < table.nbytes / 3


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
@pytest.mark.parametrize("transposed", [False, True])
def test_an_expression_keeps_small_leaves_and_runs_as_one_kernel(tmp_path, scheme, transposed):
    arrays = {"a": weight(128, 16), "b": weight(16, 64)}
    nodes = [node("MatMul", "a b", "w"), node("MatMul", "x w", "y")]
    if transposed:
        arrays = {"a": weight(64, 16), "b": weight(16, 128), "rows": np.array([-1, 128])}
        nodes = [
            node("MatMul", "a b", "w"),
            node("Reshape", "x rows", "f"),
            node("Gemm", "f w", "y", transB=1),
        ]
    model = model_of(tmp_path / "m", nodes, arrays, 128)
    samples = floats(128)
    feed = samples.batch([0])
    with Runner(model) as runner:
        (before,) = runner(feed).values()
    (touched,) = run(Int8(scheme=scheme), model, samples).touched
    with Runner(model) as runner:
        (after,) = runner(feed).values()
    assert touched.detail == "stays an expression"
    assert sqnr_db(before, after) > 28
    assert model.weight_bytes < 1.5 * (arrays["a"].size + arrays["b"].size)
    fused = fused_ops(model, tmp_path)
    assert fused["MatMul"] == fused["MatMulInteger"] == fused["Mul"] == 0
    assert fused["MatMulIntegerToFloat"] + fused["DynamicQuantizeMatMul"] == 1


@pytest.mark.parametrize("gemm", [False, True])
def test_a_table_shared_with_a_linear_is_stored_once(tmp_path, gemm):
    nodes = [
        node("Cast", "x", "i", to=TensorProto.INT64),
        node("Gather", "t i", "g"),
        node("ReduceMean", "g axes", "h", keepdims=0),
        node("Transpose", "t", "w", perm=[1, 0]),
        node("MatMul", "h w", "y"),
    ]
    if gemm:
        nodes[3:] = [node("Reshape", "h rows", "f"), node("Gemm", "f t", "y", transB=1)]
    arrays = {"t": weight(300, 32), "axes": np.array([2]), "rows": np.array([-1, 32])}
    model = model_of(tmp_path / "m", nodes, arrays, 3)
    samples = Samples([{"x": RNG.integers(0, 300, (5, 3)).astype(np.float32)} for _ in range(9)])
    with Runner(model) as runner:
        before = runner(samples.batch([0]))["y"]
    untouched = model.clone()
    assert len(run(Int8(), model, samples).touched) == 2
    with Runner(model) as runner:
        assert sqnr_db(before, runner(samples.batch([0]))["y"]) > 30
    assert model.weight_bytes < 1.4 * 300 * 32
    assert fused_ops(model, tmp_path)["MatMulIntegerToFloat"] == 1
    skipped = run(Int8(embeddings=False), untouched, samples).skipped
    assert [item.reason for item in skipped] == [
        "its weight is the table of an embedding that stays in float"
    ]


def test_an_expression_that_is_no_smaller_becomes_a_dense_weight(tmp_path):
    arrays = {"w": weight(32, 64), "kept": np.arange(0, 64, 2)}
    nodes = [node("Gather", "w kept", "half", axis=1), node("MatMul", "x half", "y")]
    model = model_of(tmp_path / "m", nodes, arrays)
    run(Int8(), model, floats())
    assert ops(model)["Gather"] == 0
    assert max(len(v.shape) and int(np.prod(v.shape.numpy())) for v in model.initializers()) == 32 * 32


@pytest.mark.parametrize("size", [1e5, 1e-9])
def test_a_leaf_that_float16_cannot_hold_stays_in_float32(tmp_path, size):
    arrays = {"a": weight(521, 2) * np.float32(size), "b": weight(2, 600)}  # 2 x 521 numbers make no blocks
    nodes = [node("MatMul", "a b", "w"), node("MatMul", "x w", "y")]
    model = model_of(tmp_path / "m", nodes, arrays, 521)
    feed = floats(521).batch([0])
    with Runner(model) as runner:
        (before,) = runner(feed).values()
    assert run(Int8(scheme="dynamic"), model, None).touched
    stored = {value.name: value.const_value.numpy() for value in model.initializers()}
    assert np.array_equal(stored["a"], arrays["a"])
    assert stored["b.quantised"].dtype == np.int8
    with Runner(model) as runner:
        (after,) = runner(feed).values()
    assert sqnr_db(before, after) > 28


def test_an_expression_stays_in_float_where_the_target_folds_none(tmp_path):
    nodes = [node("MatMul", "a b", "w"), node("MatMul", "x w", "y")]
    model = model_of(tmp_path / "m", nodes, {"a": weight(32, 2), "b": weight(2, 32)})
    (skipped,) = run(Int8(), model, floats(), Capabilities(constant_expressions=False)).skipped
    assert skipped.reason == "its weight is an expression, which the target does not fold"


# ---- smoothing


def normalised(path: Path, *, residual: bool) -> Model:
    """LayerNormalization with an outlier feature → two linears (→ + its input: not exact to smooth)."""
    gain = np.ones(32, np.float32)
    gain[5] = 60.0
    arrays = {"g": gain, "s": weight(32), "w1": weight(32, 32), "w2": weight(32, 32)}
    nodes = [
        node("LayerNormalization", "x g s", "n"),
        node("MatMul", "n w1", "h1"),
        node("MatMul", "n w2", "h2"),
        node("Add", "h1 h2", "h"),
        node("Add", "h n", "y") if residual else node("Relu", "h", "y"),
    ]
    return model_of(path, nodes, arrays)


def test_smoothing_is_exact(tmp_path):
    model = normalised(tmp_path / "m", residual=False)
    readers = linears(model)
    item = equalisable(readers[0].input, readers)
    assert isinstance(item, Equalisable)
    feed = floats().batch([0])
    with Runner(model) as runner:
        before = runner(feed)["y"]
    with Rewriter(model, Context()) as rw:
        divide(rw, [item], np.linspace(0.1, 9, 32, dtype=np.float32))
    with Runner(model) as runner:
        np.testing.assert_allclose(runner(feed)["y"], before, rtol=1e-4, atol=1e-3)


def test_smoothing_lowers_the_error_where_it_is_exact(tmp_path):
    feed, errors = floats(count=40), {}
    for smooth in (False, True):
        model = normalised(tmp_path / "m", residual=False)
        with Runner(model) as runner:
            before = runner(feed.batch([0]))["y"]
        record = run(Int8(smooth=smooth, calibrate="minmax"), model, feed)
        assert any("were moved into the weights" in note for note in record.notes) == smooth
        with Runner(model) as runner:
            errors[smooth] = sqnr_db(before, runner(feed.batch([0]))["y"])
    assert errors[True] > errors[False] + 2


def test_smoothing_is_left_out_where_the_residual_path_reads_the_activation(tmp_path):
    model = normalised(tmp_path / "m", residual=True)
    notes = run(Int8(), model, floats()).notes
    assert any("residual path" in note for note in notes)
    assert "g" in model.graph.initializers


# ---- options


@given(step=instances(Int8))
def test_options_round_trip(step):
    assert Pipeline.parse(str(step)).passes == (step,)


def test_a_verdict_on_made_up_samples_says_so(tiny_bert_path, tiny_samples):
    strict = Int8(max_model_error=1e-6)
    for samples, made_up in ((None, True), (tiny_samples, False)):
        record = strict.run(Model.load(tiny_bert_path), Context(samples=samples))
        judged = [item.reason for item in record.skipped if "max_model_error" in item.reason]
        assert judged
        assert all(("made-up samples" in reason) == made_up for reason in judged)


@pytest.mark.parametrize(("count", "enough"), [(8, False), (64, True)])
def test_ranges_of_few_tokens_are_told_with_the_count_that_would_do(tiny_bert, count, enough):
    samples = replace(varied_samples(tiny_bert, count=count, seed=3), synthetic=False)
    notes = " ".join(Int8().run(tiny_bert, Context(samples=samples)).notes)
    assert ("too little data: ranges of activations come from " in notes) == (not enough)
    assert ("tokens; 512 would do" in notes) == (not enough)
