"""What the rules of all fused operators use: the node under work, and ways to write what stands for it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.graph.match import node_name, operand
from graphcompress.rewrite.builder import Builder
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.opsets.versions import definition

_SHAPE_HAS_BOUNDS = 15
"""Since this opset Shape can be asked for a part of the sizes."""


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


class Writer(Builder):
    """Writes standard operators in front of one fused node, and lets them take its place."""

    def __init__(self, rw: Rewriter, node: ir.Node) -> None:
        super().__init__(rw, node, node.outputs[0].name or node_name(node))
        self.fused = node

    # ---- reading the node

    def input(self, index: int) -> ir.Value | None:
        """An input, or None when it is absent."""
        return operand(self.fused, index)

    def required(self, index: int) -> ir.Value:
        """An input that the operator cannot do without."""
        value = self.input(index)
        if value is None:
            raise ValueError(f"node {self.fused.name!r} ({self.fused.op_type}) lacks input {index}")
        return value

    def integer(self, name: str, default: int = 0) -> int:
        """An attribute."""
        return self.fused.attributes.get_int(name, default)

    def number(self, name: str, default: float) -> float:
        """An attribute."""
        return self.fused.attributes.get_float(name, default)

    def has(self, op_type: str) -> bool:
        """Whether the opset of the model has an operator."""
        return definition(op_type, self.rw.model.opset) is not None

    # ---- writing

    def scalar(self, number: float, like: ir.Value) -> ir.Value:
        """A constant of no axes, of the type of ``like``."""
        return self.constant(number, "constant", like=like)

    def integers(self, *numbers: int) -> ir.Value:
        """A constant vector of integers: axes, sizes, indices."""
        return self.constant(numbers, "integers")

    def size(self, value: ir.Value, axis: int) -> ir.Value:
        """The size of ``value`` along ``axis``, as a vector of one element."""
        if self.rw.model.opset >= _SHAPE_HAS_BOUNDS:
            return self.op("Shape", value, start=axis, end=axis + 1)
        return self.op("Gather", self.op("Shape", value), self.integers(axis), axis=0)

    def count(self, size: ir.Value, start: ir.Value | None = None) -> ir.Value:
        """The integers from 0 (or ``start``, a vector of one element) on, as many as ``size`` says."""
        shape = self.integers()
        zero, one = self.constant(0, "zero"), self.constant(1, "one")
        positions = self.op("Range", zero, self.op("Reshape", size, shape), one)
        return positions if start is None else self.op("Add", positions, start)

    def stand_in(self, *values: ir.Value | None) -> None:
        """Let ``values`` take the place of the outputs of the fused node."""
        for old, new in zip(self.fused.outputs, values, strict=False):
            if new is not None and is_read(old):
                self.rw.replace(old, new, take_name=True)


def is_read(value: ir.Value) -> bool:
    """Whether anything reads ``value``, the caller of the model included."""
    return bool(value.uses()) or value.is_graph_output()


def reads_outputs(node: ir.Node, indices: Sequence[int]) -> bool:
    """Whether anything reads one of these outputs of ``node``."""
    return any(index < len(node.outputs) and is_read(node.outputs[index]) for index in indices)
