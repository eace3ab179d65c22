"""kron on graphs: expressions, factored products, presets, what is left alone and why."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from bert import Bert
from hypothesis import given
from onnx import TensorProto, helper, numpy_helper
from strategies import instances

from graphcompress.analysis.linears import embeddings, linears
from graphcompress.errors import ContractError, UnsupportedModelError, UsageError
from graphcompress.files.runtime import session_of
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.numerics.kronecker import Factors, Split, nearest, relative_error
from graphcompress.passes.kron.kron import Kron
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context
from graphcompress.plugin.record import Record
from graphcompress.rewrite.kronecker import read_expression, write_expression, write_products
from graphcompress.rewrite.rewriter import Rewriter

LINEARS_PER_LAYER = 6


def model_of(
    tmp_path: Path,
    nodes: list[onnx.NodeProto],
    tensors: dict[str, np.ndarray],
    *,
    x: list[int | str],
    y: list[int | str],
    element: int = TensorProto.FLOAT,
) -> Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", element, x)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, y)],
        [numpy_helper.from_array(array, name) for name, array in tensors.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(proto, tmp_path / "m.onnx")
    return Model.load(tmp_path / "m.onnx")


def one_linear(tmp_path: Path, weight: np.ndarray) -> Model:
    rows, columns = weight.shape
    nodes = [helper.make_node("MatMul", ["x", "w"], ["p"]), helper.make_node("Add", ["p", "b"], ["y"])]
    bias = np.linspace(-1, 1, columns, dtype=np.float32)
    shape: list[int | str] = ["batch", "sequence"]
    return model_of(tmp_path, nodes, {"w": weight, "b": bias}, x=[*shape, rows], y=[*shape, columns])


def run(model: Model, **options: object) -> Record:
    return Kron(**options).run(model, Context())  # type: ignore[arg-type]


def outputs(model: Model, x: np.ndarray) -> np.ndarray:
    with Runner(model) as runner:
        return runner({"x": x})["y"]


def random_factors(split: Split, rank: int) -> Factors:
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(split.n1 * split.m1, rank)), rng.normal(size=(rank, split.n2 * split.m2))
    return Factors(split, a, b)


SPLITS = [
    (Split(4, 6, 3, 2), 1),
    (Split(4, 6, 3, 2), 3),
    (Split(12, 1, 1, 12), 2),
    (Split(12, 3, 1, 4), 2),
    (Split(4, 1, 3, 12), 2),
    (Split(1, 6, 12, 2), 2),
    (Split(4, 12, 3, 1), 3),
]


@pytest.mark.parametrize(("split", "rank"), SPLITS)
def test_the_expression_is_the_dense_product_and_is_read_back(tmp_path, split, rank):
    model = one_linear(tmp_path, np.zeros((12, 12), np.float32))
    factors = random_factors(split, rank)
    ctx = Context()
    with Rewriter(model, ctx) as rw:
        [linear] = linears(model)
        weight = write_expression(rw, factors, linear.name, linear.weight.dtype, linear.node)
        rw.set_weight(linear, weight)
    [linear] = linears(model)
    np.testing.assert_allclose(linear.dense(), factors.dense(), atol=1e-5)
    assert linear.name == "w"
    assert linear.parameters == factors.parameters
    found = read_expression(linear.weight)
    assert found is not None
    assert (found.split, found.rank) == (split, rank)


@pytest.mark.parametrize("order", ["a_first", "b_first", None])
@pytest.mark.parametrize(("split", "rank"), SPLITS)
def test_products_with_the_factors_equal_the_dense_product(tmp_path, split, rank, order):
    model = one_linear(tmp_path, np.zeros((12, 12), np.float32))
    factors = random_factors(split, rank)
    with Rewriter(model, Context()) as rw:
        [linear] = linears(model)
        rw.set_weight(linear, write_expression(rw, factors, linear.name, linear.weight.dtype, linear.node))
    x = np.random.default_rng(1).normal(size=(2, 5, 12)).astype(np.float32)
    expected = outputs(model, x)
    with Rewriter(model, Context()) as rw:
        [linear] = linears(model)
        found = read_expression(linear.weight)
        assert found is not None
        write_products(rw, linear, found, order)
    actual = outputs(model, x)
    np.testing.assert_allclose(actual, expected, atol=1e-5 * np.abs(expected).max())
    np.testing.assert_allclose(actual, x @ factors.dense() + np.linspace(-1, 1, 12), atol=1e-3)
    assert {node.op_type for node in model.graph} <= {"Reshape", "MatMul", "Add", "Transpose"}


def test_products_need_a_known_rank_of_the_input(tmp_path):
    model = one_linear(tmp_path, np.zeros((12, 12), np.float32))
    run(model, shape="4x6,3x2")
    [linear] = linears(model)
    found = read_expression(linear.weight)
    assert found is not None
    linear.input.shape = None
    with pytest.raises(UnsupportedModelError, match="no known rank"):
        write_products(Rewriter(model, Context()), linear, found)


def test_other_expressions_are_not_read_as_factors(tiny_bert):
    assert all(read_expression(linear.weight) is None for linear in linears(tiny_bert))


def test_full_rank_equals_dense(tmp_path):
    weight = np.random.default_rng(0).normal(size=(12, 18)).astype(np.float32)
    factors = nearest(weight, Split(2, 3, 6, 6), 6)
    model = one_linear(tmp_path, weight)
    x = np.random.default_rng(1).normal(size=(2, 5, 12)).astype(np.float32)
    expected = outputs(model, x)
    with Rewriter(model, Context()) as rw:
        [linear] = linears(model)
        rw.set_weight(linear, write_expression(rw, factors, "w", linear.weight.dtype, linear.node))
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-5)


def test_the_runtime_expands_the_weight_once(tmp_path):
    weight = np.kron(np.eye(12), np.ones((2, 2))).astype(np.float32)
    model = one_linear(tmp_path, weight)
    record = run(model, shape="12x12,2x2")
    assert [item.name for item in record.touched] == ["w"]
    path = model.save(tmp_path / "small.onnx")
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "expanded.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    expanded = onnx.load(tmp_path / "expanded.onnx").graph
    assert [node.op_type for node in expanded.node] == ["MatMul", "Add"]
    assert [list(tensor.dims) for tensor in expanded.initializer if len(tensor.dims) == 2] == [[24, 24]]


def test_only_factors_are_stored(tmp_path):
    weight = np.random.default_rng(0).normal(size=(256, 256)).astype(np.float32)
    model = one_linear(tmp_path, weight)
    dense_bytes = model.save(tmp_path / "dense.onnx").stat().st_size
    record = run(model, shape="128x128,2x2")
    small_bytes = model.save(tmp_path / "small.onnx").stat().st_size
    stored = 128 * 128 + 2 * 2
    assert model.parameters == stored + 256
    assert record.touched[0].figures["parameters_after"] == stored
    assert small_bytes < 4 * stored + 4096 < dense_bytes / 3


@pytest.mark.parametrize(("name", "square", "widening", "width"), [("k8", 4, 16, 8), ("k21", 32, 32, 16)])
def test_a_preset_takes_the_layers_and_the_word_embedding(
    tiny_bert, tiny_samples, name, square, widening, width
):
    hidden, ffn, layers, vocabulary = 32, 64, 2, 100
    before = tiny_bert.parameters
    record = Kron(preset=name).run(tiny_bert, Context(samples=tiny_samples))
    dense = layers * (4 * hidden**2 + 2 * hidden * ffn) + vocabulary * hidden
    factored = layers * (4 * (hidden**2 // square + square) + 2 * (hidden * ffn // widening + widening)) + (
        vocabulary * hidden // width + width
    )
    assert before - tiny_bert.parameters == dense - factored
    assert len(record.touched) == layers * LINEARS_PER_LAYER + 1
    skipped = {item.name: item.reason for item in record.skipped}
    assert all("not the word embedding" in reason for reason in skipped.values())
    assert all("error" in item.figures for item in record.touched)


def test_a_preset_leaves_pooler_and_head_alone(tmp_path):
    bert = Bert()
    proto = bert.model()
    rng = np.random.default_rng(0)
    graph = proto.graph
    for name, shape in (("pooler", (32, 32)), ("head", (32, 2))):
        graph.initializer.append(numpy_helper.from_array(rng.normal(size=shape).astype(np.float32), name))
    graph.initializer.append(numpy_helper.from_array(np.array(0), "first"))
    graph.node.extend(
        [
            helper.make_node("Gather", ["last_hidden_state", "first"], ["cls"], axis=1),
            helper.make_node("MatMul", ["cls", "pooler"], ["pooled"]),
            helper.make_node("Tanh", ["pooled"], ["pooled_tanh"]),
            helper.make_node("MatMul", ["pooled_tanh", "head"], ["logits"]),
        ]
    )
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", 2]))
    onnx.save(proto, tmp_path / "m.onnx")
    record = run(Model.load(tmp_path / "m.onnx"), preset="k8")
    reasons = {item.name: item.reason for item in record.skipped}
    assert "leaves it alone" in reasons["pooler"]
    assert "leaves it alone" in reasons["head"]
    assert len(record.touched) == 2 * LINEARS_PER_LAYER + 1


def test_outputs_are_those_of_the_dense_weights(tiny_bert, tiny_samples):
    """The factored model equals the original with its weights exchanged for the dense products."""
    Kron(preset="k8").run(tiny_bert, Context(samples=tiny_samples))
    feed = tiny_samples.batch(range(4))
    with Runner(tiny_bert) as runner:
        factored = runner(feed)
    with Rewriter(tiny_bert, Context()) as rw:
        for subject in (*linears(tiny_bert), *embeddings(tiny_bert)):
            rw.set_weight(subject, rw.constant(subject.dense(), f"{subject.name}.dense"))
    with Runner(tiny_bert) as runner:
        dense = runner(feed)
    for name, array in dense.items():
        np.testing.assert_allclose(factored[name], array, atol=1e-5 * np.abs(array).max())


def test_samples_bring_the_output_closer(tiny_bert, tiny_samples, tiny_bert_path):
    name = "encoder.layer.0.intermediate.dense.weight_t"
    blind, fitted = Context(), Context(samples=tiny_samples)
    moments = {}
    for ctx in (blind, fitted):
        model = Model.load(tiny_bert_path)
        record = Kron(only=name, shape="16x32,2x2").run(model, ctx)
        moments[id(ctx)] = linears(model, name)[0].dense()
    [linear] = linears(tiny_bert, name)
    with Runner(tiny_bert, [linear.input]) as runner:
        feeds = [tiny_samples.batch([index]) for index in range(len(tiny_samples))]
        x = np.concatenate([next(iter(runner(feed).values()))[0] for feed in feeds])
    errors = [relative_error(x @ linear.dense(), x @ moments[id(ctx)]) for ctx in (blind, fitted)]
    assert errors[1] < errors[0]
    assert record.touched[0].figures["error"] == pytest.approx(errors[1], rel=0.2)


def test_without_options_random_weights_are_left_alone_with_figures(tiny_bert, tiny_bert_path):
    before = tiny_bert.parameters
    record = run(tiny_bert)
    assert not record.touched
    assert tiny_bert.parameters == before
    assert len(record.skipped) == 2 * LINEARS_PER_LAYER + len(embeddings(tiny_bert))
    refused = [item for item in record.skipped if "above max_error 0.04" in item.reason]
    assert len(refused) >= 2 * LINEARS_PER_LAYER
    assert all(0.04 < item.figures["error"] < 1 for item in refused)
    assert any("no samples" in note for note in record.notes)
    assert any(note.startswith("max_error=") for note in record.notes)


def test_without_options_a_structured_weight_is_taken(tmp_path):
    rng = np.random.default_rng(0)
    weight = np.kron(rng.normal(size=(6, 4)), rng.normal(size=(4, 8))).astype(np.float32)
    model = one_linear(tmp_path, weight)
    x = rng.normal(size=(2, 5, 24)).astype(np.float32)
    expected = outputs(model, x)
    [record] = Pipeline([Kron()]).run(model, Context())
    assert record.coverage == 768 / 800  # 32 biases stay
    assert model.parameters == 6 * 4 + 4 * 8 + 32
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-4)


def test_a_second_application_changes_nothing(tiny_bert, tiny_samples):
    Kron(preset="k8").run(tiny_bert, Context(samples=tiny_samples))
    before = tiny_bert.parameters
    record = Kron(preset="k8").run(tiny_bert, Context(samples=tiny_samples))
    assert not record.touched
    assert tiny_bert.parameters == before
    assert sum("an expression already" in item.reason for item in record.skipped) == 2 * LINEARS_PER_LAYER + 1


def test_one_weight_of_two_linears_is_factored_once(tmp_path):
    weight = np.random.default_rng(0).normal(size=(8, 8)).astype(np.float32)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "w"], ["y"]),
    ]
    model = model_of(tmp_path, nodes, {"w": weight}, x=["n", 8], y=["n", 8])
    record = run(model, shape="4x4,2x2")
    assert len(record.touched) == 1
    first, second = linears(model)
    assert first.weight is second.weight
    assert model.parameters == 20


def test_a_table_tied_to_the_head_is_left_alone(tmp_path):
    table = np.random.default_rng(0).normal(size=(24, 8)).astype(np.float32)
    nodes = [
        helper.make_node("Gather", ["table", "x"], ["h"]),
        helper.make_node("Transpose", ["table"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "t"], ["y"]),
    ]
    model = model_of(
        tmp_path, nodes, {"table": table}, x=["n", "s"], y=["n", "s", 24], element=TensorProto.INT64
    )
    record = run(model, ratio=0.5)
    assert not record.touched
    assert [item.reason for item in record.skipped] == [
        "its weight is also used in another way (tied)",
        "its table is also used in another way (tied)",
    ]


def test_gemm_and_transposed_weights_are_factored(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {
        "w1": rng.normal(size=(8, 12)).astype(np.float32),
        "b1": rng.normal(size=8).astype(np.float32),
        "w2": rng.normal(size=(6, 8)).astype(np.float32),
    }
    nodes = [
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h"], transB=1),
        helper.make_node("Transpose", ["w2"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "t"], ["y"]),
    ]
    model = model_of(tmp_path, nodes, tensors, x=["n", 12], y=["n", 6])
    dense = [nearest(tensors["w1"].T, Split(6, 4, 2, 2), 1).dense()]
    x = rng.normal(size=(5, 12)).astype(np.float32)
    record = run(model, shape="6x4,2x2")
    assert [item.name for item in record.touched] == ["w1"]
    expected = (x @ dense[0] + tensors["b1"]) @ tensors["w2"].T
    np.testing.assert_allclose(outputs(model, x), expected, atol=1e-4)
    record = run(model, shape="4x3,2x2")
    assert [item.name for item in record.touched] == ["w2"]


def test_two_gemms_in_a_row_stay_connected(tmp_path):
    rng = np.random.default_rng(0)
    tensors = {name: rng.normal(size=(8, 8)).astype(np.float32) for name in ("w1", "w2")}
    nodes = [helper.make_node("Gemm", ["x", "w1"], ["h"]), helper.make_node("Gemm", ["h", "w2"], ["y"])]
    model = model_of(tmp_path, nodes, tensors, x=["n", 8], y=["n", 8])
    run(model, shape="4x4,2x2")
    one, two = (nearest(tensors[name], Split(4, 4, 2, 2), 1).dense() for name in ("w1", "w2"))
    x = rng.normal(size=(3, 8)).astype(np.float32)
    np.testing.assert_allclose(outputs(model, x), x @ one @ two, atol=1e-3)


def test_half_precision_stays_half_precision(tmp_path):
    weight = np.random.default_rng(0).normal(size=(16, 16)).astype(np.float16)
    nodes = [
        helper.make_node("Cast", ["x"], ["h"], to=TensorProto.FLOAT16),
        helper.make_node("MatMul", ["h", "w"], ["p"]),
        helper.make_node("Cast", ["p"], ["y"], to=TensorProto.FLOAT),
    ]
    model = model_of(tmp_path, nodes, {"w": weight}, x=["n", 16], y=["n", 16])
    run(model, shape="8x8,2x2")
    [linear] = linears(model)
    assert linear.dense().dtype == np.float16


@pytest.mark.parametrize(
    ("options", "reason"),
    [
        ({"shape": "5x4,2x2"}, "are not those of 5x4,2x2"),
        ({"preset": "k21"}, "leaves it alone"),
        ({"ratio": 0.99}, "no factorisation of its sizes is small enough"),
        ({"shape": "1x6,7x2", "rank": 20}, "not smaller than the weight"),
    ],
)
def test_sizes_that_do_not_fit_are_said(tmp_path, options, reason):
    model = one_linear(tmp_path, np.random.default_rng(0).normal(size=(7, 12)).astype(np.float32))
    record = run(model, **options)
    assert not record.touched
    assert reason in record.skipped[0].reason


def test_a_bound_holds_for_a_shape_too(tiny_bert):
    record = run(tiny_bert, shape="16x16,2x2", max_error=0.75)
    assert record.touched
    assert all(item.detail.startswith("16x16,2x2 rank 2") for item in record.touched)
    assert all(item.figures["error"] <= 0.75 for item in record.touched)


def test_embeddings_can_be_left_out(tiny_bert):
    record = run(tiny_bert, ratio=0.5, embeddings=False)
    assert len(record.touched) == 2 * LINEARS_PER_LAYER
    assert not record.skipped


def test_layers_select_by_name(tiny_bert):
    record = run(tiny_bert, ratio=0.5, only="*layer.1.attention*")
    assert len(record.touched) == 4
    assert all("layer.1.attention" in item.name for item in record.touched)


def test_a_broken_contract_stops_unless_allowed(tiny_bert, tiny_samples):
    pipeline = Pipeline.parse("kron{preset=k21}")
    with pytest.raises(ContractError, match="--allow kron"):
        pipeline.run(tiny_bert, Context(samples=tiny_samples))


def test_the_same_input_gives_the_same_bytes(tiny_bert_path, tiny_samples, tmp_path):
    files = []
    for number in range(2):
        model = Model.load(tiny_bert_path)
        Kron(ratio=0.5).run(model, Context(samples=tiny_samples))
        files.append(model.save(tmp_path / f"{number}.onnx").read_bytes())
    assert files[0] == files[1]


def test_a_saved_model_loads_and_runs_alike(tiny_bert, tiny_samples, tmp_path):
    Kron(preset="k8").run(tiny_bert, Context(samples=tiny_samples))
    feed = tiny_samples.batch(range(3))
    with Runner(tiny_bert) as runner:
        expected = runner(feed)
    session = session_of(tiny_bert.save(tmp_path / "m.onnx"))
    for name, array in zip(expected, session.run(None, feed), strict=True):
        np.testing.assert_allclose(array, expected[name], atol=1e-5)
    again = Model.load(tmp_path / "m.onnx")
    assert sum(read_expression(linear.weight) is not None for linear in linears(again)) == 12


@given(instances(Kron))
def test_options_round_trip(step):
    assert Pipeline.parse(str(step)).passes == (step,)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shape": "384x384"}, "expected two sizes"),
        ({"shape": "0x4,2x2"}, "expected two sizes"),
        ({"preset": "k8", "shape": "2x2,2x2"}, "leave out shape"),
        ({"preset": "k8", "ratio": 0.5}, "leave out shape"),
        ({"preset": "k9"}, "k8"),
        ({"rank": 0}, "at least 1"),
        ({"ratio": 1.0}, "at most"),
    ],
)
def test_options_that_contradict_are_refused(options, message):
    with pytest.raises(UsageError, match=message):
        Kron(**options)
