"""Constant expressions: what is constant, and that their values are those of NumPy."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx_ir as ir
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphcompress.graph.expressions import evaluate, expression_nodes, is_constant, leaves

NUMPY = {"Add": np.add, "Mul": np.multiply, "MatMul": np.matmul, "Sub": np.subtract, "Max": np.maximum}


class Builder:
    """Writes expressions over 4 x 4 matrices into a graph."""

    def __init__(self) -> None:
        self.graph = ir.Graph([], [], nodes=[], opset_imports={"": 18}, name="expression")

    def stored(self, array: np.ndarray, name: str) -> ir.Value:
        tensor = ir.tensor(array, name=name)
        return ir.Value(name=name, shape=tensor.shape, type=ir.TensorType(tensor.dtype), const_value=tensor)

    def node(self, op_type: str, *inputs: ir.Value, **attributes: int | list[int]) -> ir.Value:
        node = ir.node(op_type, list(inputs), attributes)
        self.graph.append(node)
        node.outputs[0].name = f"{op_type.lower()}_{len(self.graph)}"
        return node.outputs[0]


@given(st.lists(st.tuples(st.sampled_from(sorted(NUMPY)), st.integers(0, 9), st.integers(0, 9)), max_size=8))
def test_evaluate_is_numpy(steps: list[tuple[str, int, int]]) -> None:
    builder, rng = Builder(), np.random.default_rng(len(steps))
    arrays = [rng.standard_normal((4, 4)).astype(np.float32) for _ in range(3)]
    values = [builder.stored(array, f"w{index}") for index, array in enumerate(arrays)]
    for op_type, left, right in steps:
        a, b = left % len(values), right % len(values)
        arrays.append(NUMPY[op_type](arrays[a], arrays[b]))
        values.append(builder.node(op_type, values[a], values[b]))
    assert is_constant(values[-1])
    scale = max(1.0, float(np.abs(arrays[-1]).max()))
    np.testing.assert_allclose(evaluate(values[-1]) / scale, arrays[-1] / scale, atol=1e-5)
    assert set(leaves(values[-1])) <= set(values[:3])


def test_nodes_come_in_execution_order_and_once() -> None:
    builder = Builder()
    w = builder.stored(np.eye(4, dtype=np.float32), "w")
    squared = builder.node("MatMul", w, w)
    total = builder.node("Add", squared, squared)
    assert [node.op_type for node in expression_nodes(total)] == ["MatMul", "Add"]
    assert expression_nodes(w) == []
    assert leaves(w) == [w]


def test_a_long_chain_needs_no_recursion() -> None:
    builder = Builder()
    value = builder.stored(np.zeros((4, 4), np.float32), "w")
    for _ in range(3000):
        value = builder.node("Neg", value)
    assert len(expression_nodes(value)) == 3000
    assert is_constant(value)


@pytest.mark.parametrize("dtype", [ml_dtypes.bfloat16, np.float16, np.int8])
def test_low_precision_leaves_are_computed(dtype: type) -> None:
    builder = Builder()
    array = np.arange(16).reshape(4, 4).astype(dtype)
    value = builder.node("Cast", builder.stored(array, "w"), to=int(ir.DataType.FLOAT))
    np.testing.assert_array_equal(evaluate(value), array.astype(np.float32))


def test_a_leaf_can_be_replaced() -> None:
    builder = Builder()
    w = builder.stored(np.ones((4, 4), np.float32), "w")
    doubled = builder.node("Add", w, w)
    np.testing.assert_array_equal(evaluate(doubled, {w: np.full((4, 4), 3, np.float32)}), np.full((4, 4), 6))
    np.testing.assert_array_equal(evaluate(w, {w: np.zeros((4, 4), np.float32)}), np.zeros((4, 4)))


def test_what_is_not_constant() -> None:
    builder = Builder()
    x = ir.val("x", dtype=ir.DataType.FLOAT, shape=[4, 4])
    builder.graph.inputs.append(x)
    w = builder.stored(np.ones((4, 4), np.float32), "w")
    custom = ir.node("Frobnicate", [w], domain="custom")
    builder.graph.append(custom)
    assert not is_constant(builder.node("Add", w, x))
    assert not is_constant(builder.node("RandomNormalLike", w))
    assert not is_constant(custom.outputs[0])


def test_an_initializer_that_a_caller_may_override_is_not_constant() -> None:
    builder = Builder()
    w = builder.stored(np.ones((4, 4), np.float32), "w")
    builder.graph.inputs.append(w)
    assert not is_constant(w)
