"""Where as arithmetic, for runtimes that have no Where."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.arguments import scalar
from graphcompress.analysis.bounds import Bounds
from graphcompress.rewrite import Rewriter

_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16)


def where_as_arithmetic(rw: Rewriter, largest_input: float | None = None) -> int:
    """``Where(c, x, y)`` becomes ``c·x + (1 - c)·y`` where both are provably finite; how many were rewritten.

    The same numbers: a product with 1 and a sum with 0 round nothing, and a finite number times 0 is 0. A
    branch that is the number 0 is left out. Where a branch may hold an infinity or NaN, the Where stays, and
    that is recorded.
    """
    bounds = Bounds(largest_input)
    numbers: dict[tuple[ir.Value, ir.DataType], tuple[ir.Value, ir.Value]] = {}
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


def _rewrite(
    rw: Rewriter, node: ir.Node, numbers: dict[tuple[ir.Value, ir.DataType], tuple[ir.Value, ir.Value]]
) -> None:
    condition, then, otherwise = node.inputs
    dtype = node.outputs[0].dtype
    if condition is None or dtype is None:
        return
    key = (condition, dtype)
    if key not in numbers:
        numbers[key] = _as_numbers(rw, condition, dtype, node)
    name = node.outputs[0].name
    parts = [
        rw.node("Mul", number, branch, before=node, name=f"{name}.{word}")
        for number, branch, word in zip(numbers[key], (then, otherwise), ("then", "else"), strict=True)
        if scalar(branch) != 0
    ]
    if not parts:  # both branches are 0
        parts = [rw.node("Mul", numbers[key][0], then, before=node, name=f"{name}.zero")]
    result = parts[0] if len(parts) == 1 else rw.node("Add", *parts, before=node, name=f"{name}.chosen")
    rw.supersede(node.outputs[0], result)


def _as_numbers(
    rw: Rewriter, condition: ir.Value, dtype: ir.DataType, before: ir.Node
) -> tuple[ir.Value, ir.Value]:
    """1 where ``condition`` holds, else 0, and the other way round."""
    name = condition.name
    number = rw.node("Cast", condition, before=before, name=f"{name}.number", to=int(dtype))
    one = rw.constant(np.array(1.0, dtype.numpy()), f"{name}.one")
    return number, rw.node("Sub", one, number, before=before, name=f"{name}.inverse")
