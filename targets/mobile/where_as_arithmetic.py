"""Where as arithmetic, for runtimes that have no Where."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.graph.match import dtype_of, producer, scalar
from graphcompress.ranges.bounds import Bounds
from graphcompress.rewrite.rewriter import Rewriter

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)
_OPERATORS = {"And": "Mul", "Or": "Max"}
"""What the numbers 0 and 1 are joined with, instead of truth values."""

_Numbers = dict[tuple[ir.Value, ir.DataType, bool], ir.Value]
"""Condition, type, and whether it holds → the numbers that stand for that."""


def where_as_arithmetic(rw: Rewriter, largest_input: float | None = None) -> int:
    """``Where(c, x, y)`` becomes ``c·x + (1 - c)·y`` where both are provably finite; how many were rewritten.

    The same numbers: a product with 1 and a sum with 0 round nothing, and a finite number times 0 is 0. A
    branch that is the number 0 is left out; And, Or and Not before it become Mul, Max and a subtraction.
    Where a branch may hold an infinity or NaN, the Where stays, and that is recorded.
    """
    bounds = Bounds(largest_input)
    numbers: _Numbers = {}
    done = 0
    for node in list(rw.model.graph):
        if node.domain or node.op_type != "Where" or node.outputs[0].dtype not in _FLOATS:
            continue
        name = node.outputs[0].name or ""
        if any(bounds.of(value) is None for value in node.inputs[1:]):
            rw.skip(name, "this Where stays: a branch is not provably finite, and infinity times 0 is NaN")
            continue
        _rewrite(rw, node, numbers)
        done += 1
    return done


def _rewrite(rw: Rewriter, node: ir.Node, numbers: _Numbers) -> None:
    condition, then, otherwise = node.inputs
    if condition is None:
        return
    dtype, place = dtype_of(node.outputs[0]), rw.at(node)
    holds = _as_number(rw, condition, dtype, node, numbers)
    inverse = _inverse(rw, condition, holds, dtype, node, numbers)
    parts = [
        place.op("Mul", number, branch, name=word)
        for number, branch, word in zip((holds, inverse), (then, otherwise), ("then", "else"), strict=True)
        if scalar(branch) != 0
    ]
    if not parts:  # both branches are 0
        parts = [place.op("Mul", holds, then, name="zero")]
    result = parts[0] if len(parts) == 1 else place.op("Add", *parts, name="chosen")
    rw.replace(node.outputs[0], result, take_name=True)


def _as_number(
    rw: Rewriter, condition: ir.Value, dtype: ir.DataType, before: ir.Node, numbers: _Numbers
) -> ir.Value:
    """1 where ``condition`` holds, else 0."""
    key = (condition, dtype, True)
    if key in numbers:
        return numbers[key]
    made, place = producer(condition, "Not", *_OPERATORS), rw.at(before, condition.name)
    operands = [value for value in made.inputs if value is not None] if made is not None else []
    if made is None:
        numbers[key] = place.op("Cast", condition, name="number", to=int(dtype))
    elif made.op_type == "Not":
        holds = _as_number(rw, operands[0], dtype, before, numbers)
        numbers[key] = _inverse(rw, operands[0], holds, dtype, before, numbers)
    else:
        parts = [_as_number(rw, value, dtype, before, numbers) for value in operands]
        numbers[key] = place.op(_OPERATORS[made.op_type], *parts, name="number")
    return numbers[key]


def _inverse(
    rw: Rewriter,
    condition: ir.Value,
    holds: ir.Value,
    dtype: ir.DataType,
    before: ir.Node,
    numbers: _Numbers,
) -> ir.Value:
    """0 where ``condition`` holds, else 1."""
    key = (condition, dtype, False)
    if key not in numbers:
        place = rw.at(before, condition.name)
        one = place.constant(np.array(1.0, dtype.numpy()), "one")
        numbers[key] = place.op("Sub", one, holds, name="inverse")
    return numbers[key]
