"""Rewrites, ours and the libraries', are applied only where what they take for granted holds."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphcompress.files.runtime import runner_of, session_of
from graphcompress.graph.model import Model
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context

WIDTH = 8
FLOAT, INT = TensorProto.FLOAT, TensorProto.INT64
RNG = np.random.default_rng(0)
SCALE, SHIFT = (RNG.standard_normal(WIDTH).astype(np.float32) for _ in range(2))


def check(
    tmp_path, nodes, outputs, weights=(), *, inputs=(("x", FLOAT, ["N", "S", WIDTH]),), feeds=None, opset=18
):
    """The model simplified, by the whole pipeline; its answers are those of the file."""
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in dict(weights).items()]
    values = [helper.make_tensor_value_info(*value) for value in inputs]
    made = [helper.make_tensor_value_info(name, FLOAT, None) for name in outputs]
    graph = helper.make_graph(nodes, "g", values, made, tensors)
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.save(proto, tmp_path / "model.onnx")
    model = Model.load(tmp_path / "model.onnx")
    Pipeline([Simplify()]).run(model, Context())
    model.save(tmp_path / "simple.onnx")
    old, new = (runner_of(session_of(tmp_path / name)) for name in ("model.onnx", "simple.onnx"))
    for feed in feeds or [{"x": RNG.standard_normal((2, 3, WIDTH)).astype(np.float32)}]:
        expected, actual = old(feed), new(feed)
        assert list(expected) == list(actual) == list(outputs)
        for name, array in expected.items():
            assert array.shape == actual[name].shape
            np.testing.assert_allclose(actual[name], array, rtol=1e-5, atol=1e-6)
    assert "nothing to simplify" in Simplify().run(Model.load(tmp_path / "simple.onnx"), Context()).notes
    return [node.op_type for node in model.graph]


def node(op_type, inputs, output, **attributes):
    return helper.make_node(op_type, inputs, [output], **attributes)


def branch(*nodes):
    value = helper.make_tensor_value_info(nodes[-1].output[0], FLOAT, None)
    return helper.make_graph(list(nodes), "branch", [], [value])


def test_equal_outputs_stay_two(tmp_path):
    nodes = [node("Tanh", ["x"], "a"), node("Tanh", ["x"], "b"), node("Identity", ["a"], "c")]
    check(tmp_path, nodes, ["a", "b", "c"])


def test_a_branch_may_return_a_value_from_outside(tmp_path):
    yes, no = branch(node("Identity", ["t"], "y")), branch(node("Neg", ["t"], "n"))
    nodes = [
        node("Tanh", ["x"], "t"),
        node("ReduceSum", ["t"], "sum", keepdims=0),
        node("Greater", ["sum", "zero"], "test"),
        node("If", ["test"], "o", then_branch=yes, else_branch=no),
    ]
    assert "If" in check(tmp_path, nodes, ["o"], {"zero": np.float32(0)})


def test_a_loop_needs_no_condition(tmp_path):
    body = helper.make_graph(
        [node("Identity", ["on"], "go"), node("Tanh", ["state"], "next")],
        "body",
        [
            helper.make_tensor_value_info("step", INT, []),
            helper.make_tensor_value_info("on", TensorProto.BOOL, []),
            helper.make_tensor_value_info("state", FLOAT, None),
        ],
        [
            helper.make_tensor_value_info("go", TensorProto.BOOL, []),
            helper.make_tensor_value_info("next", FLOAT, None),
        ],
    )
    check(tmp_path, [node("Loop", ["twice", "", "x"], "o", body=body)], ["o"], {"twice": np.int64(2)})


def layer_norm(rank=1):
    weights = {
        "axis": np.array([-1]),
        "two": np.float32(2),
        "small": np.float32(1e-5),
        "scale": SCALE.reshape((1,) * (rank - 1) + (WIDTH,)),
    }
    nodes = [
        node("ReduceMean", ["x", "axis"], "mean", keepdims=1),
        node("Sub", ["x", "mean"], "centred"),
        node("Pow", ["centred", "two"], "square"),
        node("ReduceMean", ["square", "axis"], "variance", keepdims=1),
        node("Add", ["variance", "small"], "positive"),
        node("Sqrt", ["positive"], "deviation"),
        node("Div", ["centred", "deviation"], "normal"),
        node("Mul", ["normal", "scale"], "scaled"),
    ]
    return nodes, weights


def test_what_is_added_to_a_norm_is_a_bias_or_stays(tmp_path):
    nodes, weights = layer_norm()
    biased = check(
        tmp_path, [*nodes, node("Add", ["scaled", "shift"], "o")], ["o"], weights | {"shift": SHIFT}
    )
    assert biased == ["LayerNormalization"]
    assert check(tmp_path, [*nodes, node("Add", ["scaled", "x"], "o")], ["o"], weights) == [
        "LayerNormalization",
        "Add",
    ]


def test_a_scale_that_adds_axes_is_no_scale_of_a_norm(tmp_path):
    nodes, weights = layer_norm(rank=3)
    feeds = [{"x": RNG.standard_normal((2, WIDTH)).astype(np.float32)}]
    check(tmp_path, nodes, ["scaled"], weights, inputs=[("x", FLOAT, ["N", WIDTH])], feeds=feeds)


@pytest.mark.parametrize("per_row", [True, False])
def test_a_guard_against_nan_read_in_a_branch_and_one_flag_for_all(tmp_path, per_row):
    table = {"table": RNG.standard_normal((11, WIDTH)).astype(np.float32) / 4}
    numbers = {"none": np.int64(0), "zero": np.float32(0), "low": np.float32(-np.inf), "one": np.array([1])}
    yes, no = branch(node("Tanh", ["mixed"], "y")), branch(node("Neg", ["mixed"], "n"))
    nodes = [
        node("Gather", ["table", "ids"], "v"),
        node("Transpose", ["v"], "k", perm=[0, 2, 1]),
        node("MatMul", ["v", "k"], "scores"),
        node("ReduceSum", ["mask"], "sum", keepdims=0),
        node("Greater", ["sum", "none"], "any"),
        node("Greater", ["mask", "none"], "seen"),
        node("Unsqueeze", ["seen", "one"], "rows"),
        node("Where", ["rows" if per_row else "any", "zero", "low"], "hidden"),
        node("Add", ["scores", "hidden"], "masked"),
        node("Softmax", ["masked"], "shares", axis=-1),
        node("IsNaN", ["shares"], "nan"),
        node("Where", ["nan", "zero", "shares"], "safe"),
        node("MatMul", ["safe", "v"], "mixed"),
        node("If", ["any"], "o", then_branch=yes, else_branch=no),
    ]
    inputs = [("ids", INT, ["N", "S"]), ("mask", INT, ["N", "S"])]
    ids = RNG.integers(0, 11, (2, 4))
    feeds = [
        {"ids": ids, "mask": np.array(mask)}
        for mask in ([[1] * 4, [0] * 4], [[0] * 4] * 2, [[1, 0, 0, 0]] * 2)
    ]
    check(tmp_path, nodes, ["o"], table | numbers, inputs=inputs, feeds=feeds)


def test_two_scales_whose_product_underflows_stay_two(tmp_path):
    nodes = [
        node("Mul", ["x", "small"], "a"),
        node("Mul", ["x", "small"], "b"),
        node("Transpose", ["b"], "t", perm=[0, 2, 1]),
        node("Mul", ["t", "one"], "c"),
        node("MatMul", ["a", "c"], "o"),
    ]
    x = RNG.standard_normal((2, 3, WIDTH)).astype(np.float32)
    weights = {"small": np.float32(1e-30), "one": np.float32(1e-30)}
    check(tmp_path, nodes, ["o"], weights, feeds=[{"x": x * np.float32(1e30)}])


def repeated_row(*nodes, last):
    """A row of x, repeated for every token, then ``nodes``, then the sum with x."""
    weights = {"zero": np.array([0]), "one": np.array([1])}
    first = [
        node("Slice", ["x", "zero", "one", "one"], "row"),
        node("Shape", ["x"], "shape"),
        node("Expand", ["row", "shape"], "v0"),
    ]
    return [*first, *nodes, node("Add", [last, "x"], "o")], weights


def test_a_long_chain_and_many_paths_end(tmp_path):
    chain = [node("Neg", [f"v{i}"], f"v{i + 1}") for i in range(600)]
    graph, weights = repeated_row(*chain, last="v600")
    check(tmp_path, graph, ["o"], weights)
    doubled = [node("Add", [f"v{i}", f"v{i}"], f"v{i + 1}") for i in range(40)]
    graph, weights = repeated_row(*doubled, last="v40")
    assert "Expand" not in check(tmp_path, graph, ["o"], weights)


def test_a_size_that_is_doubled_many_times_ends(tmp_path):
    weights = {"zero": np.array([0]), "small": np.float32(2.0**-40)}
    nodes = [
        node("Shape", ["x"], "shape"),
        node("Gather", ["shape", "zero"], "v0", axis=0),
        *(node("Add", [f"v{i}", f"v{i}"], f"v{i + 1}") for i in range(40)),
        node("Cast", ["v40"], "number", to=FLOAT),
        node("Mul", ["number", "small"], "batch"),
        node("Add", ["x", "batch"], "o"),
    ]
    check(tmp_path, nodes, ["o"], weights)
