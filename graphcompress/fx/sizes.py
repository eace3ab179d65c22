"""Shape arithmetic: what ONNX computes with tiny tensors, the trained graph computes with Python integers."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir
from torch import fx

Item = int | bool | fx.Node
"""A number that is known now, or a node that gives one when the graph runs."""


@dataclass(frozen=True)
class Sizes:
    """An integer or boolean tensor of rank 0 or 1 whose elements are Python numbers.

    Attributes:
        items: its elements.
        scalar: rank 0 (one element) instead of rank 1.
        dtype: its type in the ONNX graph.
    """

    items: tuple[Item, ...]
    scalar: bool = False
    dtype: ir.DataType = ir.DataType.INT64

    @property
    def known(self) -> tuple[int, ...] | None:
        """The elements, when all are known now."""
        return None if any(isinstance(item, fx.Node) for item in self.items) else self.items  # type: ignore[return-value]


LARGEST = 64
"""Elements of the largest constant that is treated as numbers."""


def sizes_of_array(array: np.ndarray) -> Sizes | None:
    """A small integer or boolean array of rank 0 or 1 as numbers."""
    if array.dtype.kind not in "iub" or array.ndim > 1 or array.size > LARGEST:
        return None
    dtype = ir.DataType.from_numpy(array.dtype)
    return Sizes(tuple(item.item() for item in array.reshape(-1)), array.ndim == 0, dtype)


def truncated_quotient(dividend: int, divisor: int) -> int:
    """``dividend / divisor`` rounded towards zero, as ONNX divides integers."""
    quotient = abs(dividend) // abs(divisor)
    return quotient if (dividend < 0) == (divisor < 0) else -quotient


def chosen(condition: bool, then: int, otherwise: int) -> int:
    """``then`` where ``condition`` holds, else ``otherwise``."""
    return then if condition else otherwise


FUNCTIONS: dict[str, Callable[..., Any]] = {
    "Abs": operator.abs,
    "Add": operator.add,
    "Div": truncated_quotient,
    "Equal": operator.eq,
    "Greater": operator.gt,
    "GreaterOrEqual": operator.ge,
    "Less": operator.lt,
    "LessOrEqual": operator.le,
    "Max": max,
    "Min": min,
    "Mod": operator.mod,
    "Mul": operator.mul,
    "Neg": operator.neg,
    "Not": operator.not_,
    "Sub": operator.sub,
    "Where": chosen,
}
"""ONNX operators on numbers, element by element."""


def elementwise(graph: fx.Graph, op_type: str, operands: Sequence[Sizes], dtype: ir.DataType) -> Sizes | None:
    """The operator ``op_type`` on each element, broadcast; None when the lengths do not fit."""
    length = max(len(operand.items) for operand in operands)
    if any(len(operand.items) not in (1, length) for operand in operands):
        return None
    columns = (x.items if len(x.items) == length else x.items * length for x in operands)
    rows = zip(*columns, strict=True)
    items = tuple(_apply(graph, op_type, row) for row in rows)
    return Sizes(items, all(operand.scalar for operand in operands), dtype)


def _apply(graph: fx.Graph, op_type: str, row: tuple[Item, ...]) -> Item:
    if not any(isinstance(item, fx.Node) for item in row):
        number: int = FUNCTIONS[op_type](*row)
        return number
    if op_type == "Where" and not isinstance(row[0], fx.Node):
        return row[1] if row[0] else row[2]
    neutral = {"Mul": 1, "Add": 0, "Div": 1, "Sub": 0}.get(op_type)
    if neutral is not None and row[1] == neutral:
        return row[0]
    if neutral is not None and op_type in ("Mul", "Add") and row[0] == neutral:
        return row[1]
    # Exporters ask of every size of a target whether it is -1; decided now, it is no branch of the graph.
    if op_type == "Equal" and any(isinstance(item, int) and item < 0 for item in row) and _is_size(row):
        return False
    function = operator.floordiv if op_type == "Div" and _divides_sizes(row) else FUNCTIONS[op_type]
    return graph.call_function(function, row)


def _is_size(row: tuple[Item, ...]) -> bool:
    """Whether what is not known is the size of a tensor, which is never negative."""
    return all(item.target == "size" for item in row if isinstance(item, fx.Node))


def _divides_sizes(row: tuple[Item, ...]) -> bool:
    return _is_size(row) and all(isinstance(item, fx.Node) or item > 0 for item in row)
