"""The builder at a node: places, names, types of constants."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from texts import model_of

from graphcompress.graph.match import array_of, operand
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter


@pytest.fixture
def model():
    return model_of(
        """
        g (float16[n, 4] x) => (float16[n, 4] y) {
            h = Neg(x)
            y = Abs(h)
        }
        """
    )


@pytest.fixture
def rw(model) -> Rewriter:
    return Rewriter(model, Context())


def test_what_is_made_stands_before_the_node_and_begins_with_its_name(model, rw) -> None:
    last = model.graph[1]
    b = rw.at(last)
    b.op("Relu", last.inputs[0])
    b.op("Relu", last.inputs[0], name="bent")
    rw.at(last, "other").op("Relu", last.inputs[0], name="")
    assert [node.outputs[0].name for node in model.graph] == ["h", "y.relu", "y.bent", "other", "y"]
    rw.at(None).op("Relu", last.outputs[0])
    assert model.graph[-1].outputs[0].name == "relu"


@pytest.mark.parametrize(
    ("op_type", "numbers", "name", "dtype"),
    [
        ("Mul", 2, "y.B", np.float16),
        ("Reshape", [0, -1], "y.shape", np.int64),
        ("Unsqueeze", [], "y.axes", np.int64),
        ("Gather", 1, "y.indices", np.int64),
        ("Concat", np.zeros((1, 4), np.float32), "y.inputs", np.float16),
    ],
)
def test_numbers_become_constants_of_the_type_that_is_read_there(
    model, rw, op_type, numbers, name, dtype
) -> None:
    attributes = {"Gather": {"axis": 0}, "Concat": {"axis": 0}}.get(op_type, {})
    made = rw.at(model.graph[1]).node(op_type, model.graph[0].outputs[0], numbers, **attributes)
    constant = operand(made, 1)
    assert (constant.name, constant.dtype.numpy()) == (name, dtype)
    np.testing.assert_array_equal(array_of(constant), np.asarray(numbers))


def test_the_type_of_what_is_made_is_known_at_once(model, rw) -> None:
    b, x = rw.at(model.graph[1]), model.graph.inputs[0]
    made = (b.op("Shape", x), b.op("Greater", x, 0), b.op("Cast", x, to=ir.DataType.FLOAT), b.op("Exp", x))
    assert [value.dtype.name for value in made] == ["INT64", "BOOL", "FLOAT", "FLOAT16"]


def test_constants_without_an_operator(model, rw) -> None:
    b, x = rw.at(model.graph[1]), model.graph.inputs[0]
    made = [b.constant(number, "c") for number in (1, 0.5, True, [], np.zeros(2, np.int32))]
    assert [value.dtype.name for value in made] == ["INT64", "FLOAT", "BOOL", "INT64", "INT32"]
    assert [value.name for value in made] == ["y.c", "y.c.1", "y.c.2", "y.c.3", "y.c.4"]
    assert b.constant(3, "like", like=x).dtype == ir.DataType.FLOAT16


def test_an_operator_of_another_domain_is_imported(model, rw) -> None:
    made = rw.at(model.graph[1]).node("Gelu", model.graph.inputs[0], domain="com.microsoft", outputs=2)
    assert [value.name for value in made.outputs] == ["y.gelu", "y.gelu.1"]
    assert model.graph.opset_imports["com.microsoft"] == 1
