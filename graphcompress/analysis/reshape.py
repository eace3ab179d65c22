"""Targets of Reshape as constants, from symbolic shapes."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import onnx_ir as ir

Dim = int | ir.SymbolicDim


def reshape_target(input_shape: Iterable[Dim], output_shape: Iterable[Dim]) -> list[int] | None:
    """The constant second input of ``Reshape(allowzero=0)`` that turns ``input_shape`` into ``output_shape``.

    A fixed size is written as a number, a dimension equal to the input's at the same position as 0 (copy),
    one other as -1 (inferred). None when more than one dimension would have to be inferred or a fixed size is
    zero: then the target has to be computed at run time.
    """
    before, after = list(input_shape), list(output_shape)
    target = [_entry(axis, dim, before) for axis, dim in enumerate(after)]
    if target.count(-1) > 1 or 0 in (dim for dim in after if isinstance(dim, int)):
        return None
    return target


def _entry(axis: int, dim: Dim, input_shape: Sequence[Dim]) -> int:
    if isinstance(dim, int):
        return dim
    if axis < len(input_shape) and _same_symbol(dim, input_shape[axis]):
        return 0
    return -1


def _same_symbol(dim: ir.SymbolicDim, other: Dim) -> bool:
    if isinstance(other, int) or dim.value is None or other.value is None:
        return False
    return dim == other or str(dim.simplify()) == str(other.simplify())
