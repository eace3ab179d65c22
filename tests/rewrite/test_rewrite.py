"""Rewriter: edits keep the interface, names stay unique, the record is truthful."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper, numpy_helper
from texts import model_of

from graphcompress.analysis.linears import embeddings, linears
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.structure import check_structure, interface
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter


@pytest.fixture
def ctx() -> Context:
    return Context()


def outputs(model: Model, feed) -> np.ndarray:
    with Runner(model) as run:
        return run(feed)[model.graph.outputs[0].name]


def value(model: Model, name: str) -> ir.Value:
    return next(v for node in model.graph for v in node.outputs if v.name == name)


def test_nothing_is_modified_until_something_is(tiny_bert, ctx) -> None:
    with Rewriter(tiny_bert, ctx) as rw:
        rw.skip("a", "a reason", error=0.5)
        rw.note("a note")
        assert not rw.modified
    assert (rw.skipped[0].reason, rw.skipped[0].figures) == ("a reason", {"error": 0.5})
    assert rw.notes == ["a note"]


def test_touch_counts_the_parameters_before_the_edit(tiny_bert, ctx) -> None:
    linear = linears(tiny_bert)[0]
    with Rewriter(tiny_bert, ctx) as rw:
        rw.touch(linear, "smaller", ratio=0.5)
        rw.set_weight(linear, rw.constant(np.zeros((32, 32), np.float32), "zeros"))
    assert [(item.name, item.parameters) for item in rw.touched] == [(linear.name, 1024)]


def test_a_new_weight_is_used_and_the_old_one_goes(tiny_bert, ctx, tiny_samples) -> None:
    linear, feed = linears(tiny_bert)[0], tiny_samples.batch([0, 5])
    before, faces = outputs(tiny_bert, feed), interface(tiny_bert)
    old, dense, name = linear.weight.name, linear.dense(), linear.name
    with Rewriter(tiny_bert, ctx) as rw:
        rw.set_weight(linear, rw.constant(dense, "again"))
    assert old not in tiny_bert.graph.initializers
    assert linears(tiny_bert)[0].name == name
    np.testing.assert_array_equal(outputs(tiny_bert, feed), before)
    assert check_structure(tiny_bert, faces) is None


@pytest.mark.parametrize("transposed", [0, 1])
def test_a_gemm_becomes_matmul_and_add(transposed, ctx, tmp_path) -> None:
    rng = np.random.default_rng(0)
    w, b = rng.standard_normal((4, 6)).astype(np.float32), rng.standard_normal(6).astype(np.float32)
    stored = np.ascontiguousarray(w.T if transposed else w)
    graph = helper.make_graph(
        [helper.make_node("Gemm", ["x", "w", "b"], ["y"], transB=transposed)],
        "gemm",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 6])],
        [numpy_helper.from_array(stored, "w"), numpy_helper.from_array(b, "b")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "g"
    )
    model = Model.load(tmp_path / "g")
    (linear,) = linears(model)
    np.testing.assert_array_equal(linear.dense(), w)
    with Rewriter(model, ctx) as rw:
        rw.set_weight(linear, rw.constant(2 * w, "double"))
    assert [node.op_type for node in model.graph] == ["MatMul", "Add"]
    x = rng.standard_normal((3, 4)).astype(np.float32)
    with Runner(model) as run:
        np.testing.assert_allclose(run({"x": x})["y"], 2 * x @ w + b, rtol=1e-5)


def test_a_table_is_replaced(tiny_bert, ctx) -> None:
    table = embeddings(tiny_bert)[0]
    with Rewriter(tiny_bert, ctx) as rw:
        rw.set_weight(table, rw.constant(np.zeros((100, 32), np.float32), "empty"))
    assert not embeddings(tiny_bert)[0].dense().any()


def test_names_are_unique_and_the_same_in_every_run(tiny_bert, ctx) -> None:
    rw = Rewriter(tiny_bert, ctx)
    assert [rw.fresh_name("input_ids"), rw.fresh_name("new"), rw.fresh_name("new")] == [
        "input_ids.1",
        "new",
        "new.1",
    ]
    made = rw.at(None).op(
        "Split", value(tiny_bert, "embeddings.sum"), outputs=2, name="half", axis=-1, num_outputs=2
    )
    assert [output.name for output in made.producer().outputs] == ["half", "half.1"]


def test_replacing_an_output_keeps_its_name(tiny_bert, ctx, tiny_samples) -> None:
    faces, feed = interface(tiny_bert), tiny_samples.batch([0])
    before = outputs(tiny_bert, feed)
    with Rewriter(tiny_bert, ctx) as rw:
        old = tiny_bert.graph.outputs[0]
        rw.replace(old, rw.at(None).op("Neg", old))
    np.testing.assert_array_equal(outputs(tiny_bert, feed), -before)
    assert check_structure(tiny_bert, faces) is None


@pytest.mark.parametrize("kind", ["input", "weight"])
def test_an_output_replaced_by_an_input_or_a_weight_leaves_their_names(kind, ctx, tmp_path) -> None:
    info = helper.make_tensor_value_info
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"]), helper.make_node("Add", ["x", "w"], ["z"])],
        "g",
        [info("x", TensorProto.FLOAT, [2])],
        [info("y", TensorProto.FLOAT, [2]), info("z", TensorProto.FLOAT, [2])],
        [numpy_helper.from_array(np.ones(2, np.float32), "w")],
    )
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "g"
    )
    model = Model.load(tmp_path / "g")
    faces = interface(model)
    new = model.graph.inputs[0] if kind == "input" else model.graph.initializers["w"]
    with Rewriter(model, ctx) as rw:
        rw.replace(model.graph.outputs[0], new)
    assert check_structure(model, faces) is None
    x = np.array([-3.0, 4.0], np.float32)
    with Runner(model) as run:
        found = run({"x": x})
    np.testing.assert_array_equal(found["y"], x if kind == "input" else np.ones(2))
    np.testing.assert_array_equal(found["z"], x + 1)


def test_an_input_that_was_not_there_is_added(ctx) -> None:
    model = model_of("g (float[b, 8] x) => (float[b, 8] y) { y = Clip(x) }")
    clip = model.graph[0]
    with Rewriter(model, ctx) as rw:
        rw.set_input(clip, 2, rw.constant(np.array(0.5, np.float32), "largest"))
    assert rw.modified
    assert [value and value.name for value in clip.inputs] == ["x", None, "largest"]
    x = np.array([[-2, -1, 0, 0.25, 0.5, 1, 2, 3]], np.float32)
    assert np.array_equal(outputs(model, {"x": x}), np.minimum(x, 0.5))


def test_a_value_can_be_wrapped(tiny_bert, ctx, tiny_samples) -> None:
    feed = tiny_samples.batch([0])
    before = outputs(tiny_bert, feed)
    with Rewriter(tiny_bert, ctx) as rw:
        old = value(tiny_bert, "embeddings.LayerNorm")
        rw.replace(old, rw.at(None).op("Identity", old))
    np.testing.assert_array_equal(outputs(tiny_bert, feed), before)


def _fail_after_an_edit(model: Model, ctx: Context) -> None:
    with Rewriter(model, ctx) as rw:
        rw.at(None).op("Neg", value(model, "embeddings.sum"))
        raise RuntimeError


def test_an_error_inside_leaves_without_cleaning(tiny_bert, ctx) -> None:
    nodes = len(list(tiny_bert.graph))
    with pytest.raises(RuntimeError):
        _fail_after_an_edit(tiny_bert, ctx)
    assert len(list(tiny_bert.graph)) == nodes + 1
    with Rewriter(tiny_bert, ctx) as rw:
        rw.modified = True
    assert len(list(tiny_bert.graph)) == nodes


def test_a_foreign_domain_is_declared_when_used(tiny_bert, ctx) -> None:
    rw = Rewriter(tiny_bert, ctx)
    rw.at(None).op("Gelu", value(tiny_bert, "embeddings.sum"), domain="com.microsoft")
    assert tiny_bert.graph.opset_imports["com.microsoft"] == 1


def test_what_is_constant_is_asked_anew_after_an_edit(tiny_bert):
    linear = linears(tiny_bert)[0]
    with Rewriter(tiny_bert, Context()) as rw:
        assert rw.is_constant(linear.weight)
        assert not rw.is_constant(linear.output)
        rw.set_input(linear.node, 0, rw.constant(np.ones((1, 2, linear.in_features), np.float32), "ones"))
        rw.set_input(linear.node, 1, linear.weight)
        linear.node.outputs[0].shape = None
        assert rw.is_constant(linear.node.outputs[0])
