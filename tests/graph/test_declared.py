"""What a file says about sizes serves its callers; inside, only what is implied is used."""

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from graphcompress.files.runtime import runner_of, session_of
from graphcompress.graph.model import Model
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.context import Context

WIDTH = 4
ODD = ["batch size", "x:0", "?", "12", "1/0", "((", "é è", "a,b"]


def saved(tmp_path, nodes, inputs, outputs, weights):
    tensors = [numpy_helper.from_array(np.asarray(array), name) for name, array in weights.items()]
    values = [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs]
    made = [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs]
    graph = helper.make_graph(
        [helper.make_node(*node[:3], **(node[3:] or [{}])[0]) for node in nodes], "g", values, made, tensors
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def simplified_answers(path, *feeds):
    model = Model.load(path)
    Simplify().run(model, Context())
    model.save(path.with_name("simplified.onnx"))
    old, new = (runner_of(session_of(file)) for file in (path, path.with_name("simplified.onnx")))
    for feed in feeds:
        expected, actual = old(feed), new(feed)
        assert {name: array.shape for name, array in expected.items()} == {
            name: array.shape for name, array in actual.items()
        }
        for name, array in expected.items():
            np.testing.assert_allclose(actual[name], array, rtol=1e-5, atol=1e-6)
    return model


def x(*shape):
    return np.random.default_rng(0).standard_normal(shape).astype(np.float32)


@pytest.mark.parametrize("name", ODD)
def test_any_name_of_a_size_is_legal_and_comes_back(tmp_path, name):
    path = saved(
        tmp_path,
        [("Reshape", ["x", "target"], ["r"]), ("Tanh", ["r"], ["y"])],
        [("x", TensorProto.FLOAT, [name, WIDTH])],
        [("y", [name, 2, 2])],
        {"target": np.array([-1, 2, 2])},
    )
    model = simplified_answers(path, {"x": x(3, WIDTH)})
    again = onnx.load_from_string(model.in_place().proto)
    assert again.graph.input[0].type.tensor_type.shape.dim[0].dim_param == name
    assert again.graph.output[0].type.tensor_type.shape.dim[0].dim_param == name


def test_a_negative_size_is_an_unknown_one(tmp_path):
    nodes = [("Tanh", ["x"], ["y"])]
    path = saved(tmp_path, nodes, [("x", TensorProto.FLOAT, [-1, WIDTH])], [("y", [-1, WIDTH])], {})
    model = simplified_answers(path, {"x": x(3, WIDTH)})
    assert not model.graph.inputs[0].shape.is_static()


def test_the_shape_that_an_output_is_given_proves_nothing(tmp_path):
    path = saved(
        tmp_path,
        [("Tanh", ["x"], ["t"]), ("Slice", ["t", "start", "end", "axis"], ["y"])],
        [("x", TensorProto.FLOAT, ["N", "S", WIDTH])],
        [("y", ["N", "S", WIDTH])],
        {"start": np.array([0]), "end": np.array([8]), "axis": np.array([1])},
    )
    simplified_answers(path, {"x": x(2, 5, WIDTH)}, {"x": x(2, 90, WIDTH)})


def test_a_slice_of_a_computed_size_may_be_shorter(tmp_path):
    path = saved(
        tmp_path,
        [
            ("NonZero", ["mask"], ["where"]),
            ("Transpose", ["where"], ["rows"], {"perm": [1, 0]}),
            ("GatherND", ["x", "rows"], ["chosen"]),
            ("Slice", ["chosen", "zero", "four", "zero"], ["first"]),
            ("Shape", ["first"], ["shape"]),
            ("Gather", ["shape", "none"], ["count"]),
            ("Cast", ["count"], ["number"], {"to": TensorProto.FLOAT}),
            ("ReduceSum", ["first", "zero"], ["sum"], {"keepdims": 0}),
            ("Div", ["sum", "number"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["N", "S", WIDTH]), ("mask", TensorProto.INT64, ["N", "S"])],
        [("y", [WIDTH])],
        {"zero": np.array([0]), "four": np.array([4]), "none": np.int64(0)},
    )
    mask = np.zeros((1, 9), np.int64)
    mask[0, :2] = 1
    simplified_answers(path, {"x": x(1, 9, WIDTH), "mask": mask})


def test_two_sizes_broadcast_to_neither(tmp_path):
    path = saved(
        tmp_path,
        [
            ("Add", ["x", "z"], ["both"]),
            ("Shape", ["both"], ["shape"]),
            ("Gather", ["shape", "zero"], ["count"]),
            ("Cast", ["count"], ["number"], {"to": TensorProto.FLOAT}),
            ("ReduceSum", ["both", "zero"], ["sum"], {"keepdims": 0}),
            ("Div", ["sum", "number"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["N", WIDTH]), ("z", TensorProto.FLOAT, ["M", WIDTH])],
        [("y", None)],
        {"zero": np.array([0])},
    )
    simplified_answers(path, {"x": x(1, WIDTH), "z": x(4, WIDTH)}, {"x": x(4, WIDTH), "z": x(4, WIDTH)})


def test_the_last_token_beside_all_tokens_has_the_size_of_all(tmp_path):
    path = saved(
        tmp_path,
        [
            ("Slice", ["x", "last", "end", "one"], ["token"]),
            ("ReduceMean", ["x", "two"], ["mean"], {"keepdims": 1}),
            ("Max", ["token", "mean"], ["y"]),
        ],
        [("x", TensorProto.FLOAT, ["N", "S", WIDTH])],
        [("y", None)],
        {"last": np.array([-1]), "end": np.array([2**63 - 1]), "one": np.array([1]), "two": np.array([2])},
    )
    simplified_answers(path, {"x": x(2, 5, WIDTH)}, {"x": x(2, 1, WIDTH)})


@pytest.mark.parametrize(
    ("operator", "default", "other"), [("Reshape", [0, 0, 4], [2, 3, 8]), ("Expand", [1, 1, 1], [3, 1, 1])]
)
def test_a_default_that_a_caller_may_override_is_no_constant(tmp_path, operator, default, other):
    path = saved(
        tmp_path,
        [(operator, ["x", "target"], ["r"]), ("Tanh", ["r"], ["y"])],
        [("x", TensorProto.FLOAT, ["N", "S", WIDTH]), ("target", TensorProto.INT64, [3])],
        [("y", None)],
        {"target": np.array(default)},
    )
    feed = {"x": x(1 if operator == "Expand" else 2, 6, WIDTH)}
    simplified_answers(path, feed, {**feed, "target": np.array(other)})
