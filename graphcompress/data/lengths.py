"""How long a sample a model can take, and how its lengths hang together."""

from __future__ import annotations

import onnx_ir as ir

from graphcompress.graph.expressions import evaluate, is_constant
from graphcompress.graph.model import Model

_SAME_COUNT = frozenset({"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Slice", "Add"})
"""Operators through which position numbers reach a table, by their first input (Add: by either)."""


def longest_sample(model: Model) -> int | None:
    """Largest number of tokens for which ``model`` has positions; None without a table of positions.

    Positions are numbers that the graph makes itself, by Range or a slice of a stored list, perhaps with a
    constant added: rows of the table below the first position are not for tokens. A table read by anything
    else, such as buckets of relative positions, sets no limit. Quantised tables count like others.
    """
    limits = [limit for node in model.graph if (limit := _limit(node)) is not None]
    return min(limits, default=None)


def total_length(model: Model) -> ir.SymbolicDim | None:
    """The length of past and new tokens together, where the graph joins an input (past keys) with new ones.

    None without such an input, or where inputs of different lengths are joined.
    """
    found = {}
    for node in model.graph:
        if node.op_type != "Concat" or node.domain or not any(_is_input(value) for value in node.inputs):
            continue
        parts = [_dim(value, node.attributes.get_int("axis", 0)) for value in node.inputs]
        if len(parts) > 1 and None not in parts:  # exporters write the Concat of one list, too
            total = ir.SymbolicDim(" + ".join(f"({part})" for part in parts)).simplify()
            found[str(total)] = total
    return next(iter(found.values())) if len(found) == 1 else None


def _is_input(value: ir.Value | None) -> bool:
    return value is not None and value.is_graph_input()


def _dim(value: ir.Value | None, axis: int) -> str | None:
    """The size along an axis as text, or None when it is not known."""
    if value is None or value.shape is None:
        return None
    dim = value.shape[axis]
    return str(dim) if isinstance(dim, int) or dim.value is not None else None


def _limit(lookup: ir.Node) -> int | None:
    """How many positions there are when ``lookup`` reads a table of positions."""
    axis: int = lookup.attributes.get_int("axis", 0)
    table, indices = lookup.inputs[:2] if lookup.op_type == "Gather" and axis == 0 else (None, None)
    if table is None or indices is None or not is_constant(table):
        return None
    if table.shape is None or len(table.shape) != 2 or not isinstance(table.shape[0], int):
        return None
    rows = table.shape[0]
    node = indices.producer()
    while node is not None and node.op_type in _SAME_COUNT:
        value, first = _counted(node)
        if value is None:
            return None
        rows -= first
        if _is_list(value) and value.shape is not None:
            return min(rows, int(value.shape.numpy()[-1]))
        node = value.producer()
    if node is None or node.op_type != "Range":
        return None
    return rows - (_number(node.inputs[0]) or 0)


def _counted(node: ir.Node) -> tuple[ir.Value | None, int]:
    """The input that carries the positions, and the number that ``node`` adds to them."""
    if node.op_type != "Add":
        return node.inputs[0], 0
    left, right = node.inputs
    if (added := _number(right)) is not None:
        return left, added
    if (added := _number(left)) is not None:
        return right, added
    return left, 0


def _number(value: ir.Value | None) -> int | None:
    """The one number that a constant holds."""
    if value is None or not is_constant(value):
        return None
    array = evaluate(value)
    return int(array.item()) if array.size == 1 else None


def _is_list(value: ir.Value) -> bool:
    return is_constant(value) and value.shape is not None and value.shape.is_static() and len(value.shape) > 0
