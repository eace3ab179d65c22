"""The vocabulary for looking at a graph: what each question answers, also where there is nothing."""

from __future__ import annotations

import math

import numpy as np
import onnx_ir as ir
import pytest

from graphcompress.graph import match
from graphcompress.graph.match import Constant, Number, OneOf, Op, Some, find

X = Some("x")
BENT = Op("Add", Op("Erf", Op("Div", X, Number(math.sqrt(2)), shared=True)), Number(1.0))
GELU = OneOf(
    Op("Mul", Op("Mul", X, BENT), Number(0.5)),
    Op("Mul", Op("Mul", X, Number(0.5), shared=True), BENT),
    Op("Mul", Op("Mul", BENT, Number(0.5)), X),
)


def given(name: str = "x", shape: tuple[int | str, ...] = (2, 3)) -> ir.Value:
    return ir.Value(name=name, shape=ir.Shape(shape), type=ir.TensorType(ir.DataType.FLOAT))


def stored(*numbers: float, dtype: type = np.float32, shape: tuple[int, ...] | None = None) -> ir.Value:
    tensor = ir.tensor(np.array(numbers, dtype).reshape(shape or ()))
    return ir.Value(
        name="c", shape=ir.Shape(tensor.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )


def op(op_type: str, *operands: ir.Value | None, domain: str = "") -> ir.Value:
    return ir.node(op_type, list(operands), domain=domain).outputs[0]


def test_nothing_is_answered_with_nothing() -> None:
    asked = (match.producer, match.only_reader, match.array_of, match.integers_of, match.scalar, match.scaled)
    asked += (match.shape_of, match.rank_of, match.fixed_shape, match.tensor_of)
    assert [question(None) for question in asked] == [None] * len(asked)
    assert match.operand(None, 0) is match.operand_beside(None, None) is match.fixed_size(None, 0) is None
    assert not match.is_standard(None, "Add")
    assert not match.is_number(None, 0.0)


def test_an_operator_of_another_domain_is_not_standard() -> None:
    own, plain = op("Gelu", given(), domain="com.microsoft"), op("Gelu", given())
    assert [match.producer(value, "Gelu", "Relu") is not None for value in (own, plain)] == [False, True]
    assert match.producer(own) is own.producer()


def test_the_only_reader_reads_once_and_alone() -> None:
    x = given()
    first = op("Neg", x).producer()
    assert (match.only_reader(x), match.only_reader(x, "Neg"), match.only_reader(x, "Abs")) == (
        first,
        first,
        None,
    )
    op("Abs", x)
    assert match.only_reader(x) is None
    y = given()
    op("Mul", y, y)
    assert match.only_reader(y) is None
    z = given()
    op("Neg", z)
    ir.Graph([z], [z], nodes=[], name="g")
    assert match.only_reader(z) is None


def test_operands_are_found_by_number_by_name_and_beside() -> None:
    x, axes = given(), stored(1, dtype=np.int64)
    node = op("Unsqueeze", x, axes).producer()
    assert (match.operand(node, "axes"), match.operand(node, 0), match.operand(node, 2)) == (axes, x, None)
    assert (match.operand_beside(node, x), match.operand_beside(node, axes)) == (axes, x)
    assert match.operand_beside(node, given()) is None
    with pytest.raises(ValueError, match="not in tuple"):
        match.operand(node, "axis")


def test_an_initializer_that_is_an_input_is_no_number() -> None:
    number = stored(3.0)
    assert (match.scalar(number), match.is_number(number, 3.0001), match.is_number(number, 3.001)) == (
        3.0,
        True,
        False,
    )
    ir.Graph([number], [], nodes=[], name="g")
    assert (match.scalar(number), match.array_of(number), match.tensor_of(number)) == (None, None, None)


def test_integers_are_those_of_a_stored_table() -> None:
    assert match.integers_of(stored(1, 2, dtype=np.int64, shape=(2,))) == [1, 2]
    assert match.integers_of(stored(1.0)) is None
    assert match.scalar(stored(1, 2, shape=(2,))) is None


@pytest.mark.parametrize(
    ("value", "factor"),
    [
        (lambda x: op("Mul", x, stored(4.0)), 4.0),
        (lambda x: op("Mul", stored(4.0), x), 4.0),
        (lambda x: op("Div", x, stored(4.0)), 0.25),
    ],
)
def test_a_value_is_scaled_by_a_number(value, factor) -> None:
    x = given()
    found = match.scaled(product := value(x))
    assert found == (product.producer(), x, factor)


@pytest.mark.parametrize(
    "value",
    [lambda x: op("Div", stored(4.0), x), lambda x: op("Div", x, stored(0.0)), lambda x: op("Mul", x, x)],
)
def test_what_is_no_scaled_value(value) -> None:
    assert match.scaled(value(given())) is None


def test_shapes_as_far_as_they_are_known() -> None:
    mixed, fixed, unknown = given(shape=("n", 3)), given(), ir.Value(name="u")
    assert [match.rank_of(value) for value in (mixed, fixed, unknown)] == [2, 2, None]
    assert [match.fixed_shape(value) for value in (mixed, fixed, unknown)] == [None, (2, 3), None]
    assert [match.fixed_size(mixed, axis) for axis in (-3, -1, 0, 1, 2)] == [None, 3, None, 3, None]
    assert (match.dtype_of(fixed), match.dtype_of(unknown)) == (ir.DataType.FLOAT, ir.DataType.FLOAT)


def bent(x: ir.Value) -> ir.Value:
    return op("Add", op("Erf", op("Div", x, stored(math.sqrt(2)))), stored(1.0))


SPELLINGS = {
    "half last": lambda x: op("Mul", op("Mul", x, bent(x)), stored(0.5)),
    "half first": lambda x: op("Mul", op("Mul", stored(0.5), x), bent(x)),
    "x last": lambda x: op("Mul", x, op("Mul", stored(0.5), bent(x))),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_a_tree_is_found_in_every_order(spelling) -> None:
    x = given()
    value = SPELLINGS[spelling](x)
    found = find(GELU, value)
    assert found is not None
    assert found["x"] is x
    assert sorted(node.op_type for node in found.nodes) == ["Add", "Div", "Erf", "Mul", "Mul"]
    for node in found.nodes:  # operands come before what reads them
        made_by = {operand.producer() for operand in node.inputs if operand is not None} - {None}
        assert made_by <= set(found.nodes[: found.nodes.index(node)])


def test_one_name_is_one_value() -> None:
    x, y = given(), given("y")
    assert find(GELU, op("Mul", op("Mul", y, bent(x)), stored(0.5))) is None
    assert find(Op("Add", X, Constant("c")), op("Add", x, y)) is None
    assert find(Op("Add", X, Constant("c")), op("Add", stored(1.0), x))["x"] is x


def test_a_tree_that_others_read_into_is_not_found_unless_it_may_be_shared() -> None:
    x = given()
    inner = op("Sigmoid", x)
    value = op("Mul", x, inner)
    assert find(Op("Mul", X, Op("Sigmoid", X)), value).nodes == (inner.producer(), value.producer())
    op("Neg", inner)
    assert find(Op("Mul", X, Op("Sigmoid", X)), value) is None
    assert find(Op("Mul", X, Op("Sigmoid", X, shared=True)), value).nodes == (value.producer(),)


def test_a_constant_node_is_stored_too() -> None:
    node = ir.node("Constant", [], {"value": ir.tensor([3, 4], name="numbers")})
    assert match.integers_of(node.outputs[0]) == [3, 4]
