"""What the rules of all fused operators use: the node under work, and ways to write what stands for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.rewrite.builder import AttributeValue
from graphcompress.rewrite.rewriter import Rewriter


def no_obstacle(node: ir.Node) -> str | None:
    """The answer of an operator that can be written in standard ones whatever its attributes say."""
    return None


@dataclass(frozen=True)
class Operator:
    """How one fused operator is written in standard ones.

    Attributes:
        write: builds the same function before the node and gives its outputs to their readers.
        obstacle: which attribute or form of input is not handled, or None; asked before ``write``.
    """

    write: Callable[[Writer], None]
    obstacle: Callable[[ir.Node], str | None] = no_obstacle


class Writer:
    """Writes standard operators in front of one fused node, and lets them take its place."""

    def __init__(self, rw: Rewriter, node: ir.Node) -> None:
        self.rw = rw
        self.node = node
        self.name = node.outputs[0].name or node.name or node.op_type

    # ---- reading the node

    def input(self, index: int) -> ir.Value | None:
        """An input, or None when it is absent."""
        return input_of(self.node, index)

    def required(self, index: int) -> ir.Value:
        """An input that the operator cannot do without."""
        value = self.input(index)
        if value is None:
            raise ValueError(f"node {self.node.name!r} ({self.node.op_type}) lacks input {index}")
        return value

    def integer(self, name: str, default: int = 0) -> int:
        """An attribute."""
        return self.node.attributes.get_int(name, default)

    def number(self, name: str, default: float) -> float:
        """An attribute."""
        return self.node.attributes.get_float(name, default)

    @property
    def opset(self) -> int:
        """Version of the standard operators of the model."""
        return self.rw.model.opset

    # ---- writing

    def op(self, op_type: str, *inputs: ir.Value | None, **attributes: AttributeValue) -> ir.Value:
        """A standard node of one output, in front of the fused one."""
        name = f"{self.name}.{op_type.lower()}"
        value = self.rw.node(op_type, *inputs, before=self.node, name=name, **attributes)  # type: ignore[arg-type]
        dtype = _dtype_after(op_type, inputs)
        if dtype is not None:
            value.dtype = dtype
        return value

    def scalar(self, number: float, like: ir.Value) -> ir.Value:
        """A constant of no axes, of the type of ``like``."""
        dtype = dtype_of(like)
        return self.rw.constant(np.array(number, dtype.numpy()), f"{self.name}.constant", dtype)

    def integers(self, *numbers: int) -> ir.Value:
        """A constant vector of integers: axes, sizes, indices."""
        return self.rw.constant(np.array(numbers, np.int64), f"{self.name}.integers")

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """The size of ``value`` along ``axis``, as a vector of one element."""
        return (
            self.op("Shape", value, start=axis, end=axis + 1)
            if self.opset >= 15
            else self._gathered(value, axis)
        )

    def _gathered(self, value: ir.Value, axis: int) -> ir.Value:
        return self.op("Gather", self.op("Shape", value), self.integers(axis), axis=0)

    def count(self, size: ir.Value, start: ir.Value | None = None) -> ir.Value:
        """The integers from 0 (or ``start``, a vector of one element) on, as many as ``size`` says."""
        shape = self.integers()
        zero = self.rw.constant(np.array(0, np.int64), f"{self.name}.zero")
        one = self.rw.constant(np.array(1, np.int64), f"{self.name}.one")
        positions = self.op("Range", zero, self.op("Reshape", size, shape), one)
        return positions if start is None else self.op("Add", positions, start)

    def stand_in(self, *values: ir.Value | None) -> None:
        """Let ``values`` take the place of the outputs of the fused node, with name, type and shape."""
        for old, new in zip(self.node.outputs, values, strict=False):
            if new is None or not is_read(old):
                continue
            if new.const_value is not None or new.is_graph_input():
                new = self.op("Identity", new)
            new.shape, new.type = old.shape, old.type or new.type
            self.rw.supersede(old, new)


def input_of(node: ir.Node, index: int) -> ir.Value | None:
    """An input of ``node``, or None when it is absent."""
    return node.inputs[index] if index < len(node.inputs) else None


def is_read(value: ir.Value) -> bool:
    """Whether anything reads ``value``, the caller of the model included."""
    return bool(value.uses()) or value.is_graph_output()


def reads_outputs(node: ir.Node, indices: Sequence[int]) -> bool:
    """Whether anything reads one of these outputs of ``node``."""
    return any(index < len(node.outputs) and is_read(node.outputs[index]) for index in indices)


def rank_of(value: ir.Value | None) -> int | None:
    """Number of axes, where it is known."""
    return None if value is None or value.shape is None else len(value.shape)


def width_of(value: ir.Value | None) -> int | None:
    """Size of the last axis, where it is fixed."""
    if value is None or value.shape is None or not len(value.shape):
        return None
    size = value.shape[-1]
    return size if isinstance(size, int) else None


def dtype_of(value: ir.Value) -> ir.DataType:
    """The type of the elements of ``value``; float32 where the file does not say."""
    return value.dtype or ir.DataType.FLOAT


def _dtype_after(op_type: str, inputs: Sequence[ir.Value | None]) -> ir.DataType | None:
    """The type of a new value before shapes are inferred again, so that constants fit it."""
    if op_type in ("Shape", "Range"):
        return ir.DataType.INT64
    if op_type not in _OF_FIRST_TYPE or not inputs or inputs[0] is None:
        return None
    return inputs[0].dtype


_OF_FIRST_TYPE = frozenset(
    """
    Add Concat Conv Div Erf Gather Gelu Gemm LayerNormalization MatMul Mul Pow RMSNormalization ReduceMean
    Reshape Sigmoid Slice Softmax Sqrt Squeeze Sub Tanh Transpose Unsqueeze
    """.split()  # noqa: SIM905 (one name per line would fill a page)
)
"""Operators whose result has the type of their first operand."""
