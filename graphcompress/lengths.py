"""How long a sample a model can take: as many tokens as it has positions."""

from __future__ import annotations

import onnx_ir as ir

from graphcompress.analysis.linears import Embedding, embeddings
from graphcompress.expressions import is_constant
from graphcompress.model import Model

_SAME_COUNT = frozenset({"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze", "Expand", "Slice", "Add"})
"""Operators through which position numbers reach a table, by their first input."""


def longest_sample(model: Model) -> int | None:
    """Largest number of tokens for which ``model`` has positions; None without a table of positions.

    Positions are numbers that the graph makes itself, by Range or a slice of a stored list. A table read by
    anything else, such as buckets of relative positions, sets no limit.
    """
    limits = [limit for table in embeddings(model) if (limit := _limit(table)) is not None]
    return min(limits, default=None)


def _limit(table: Embedding) -> int | None:
    value = table.indices
    node = value.producer()
    while node is not None and node.op_type in _SAME_COUNT and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
        if _is_list(value) and value.shape is not None:
            return min(table.rows, int(value.shape.numpy()[-1]))
    return table.rows if node is not None and node.op_type == "Range" else None


def _is_list(value: ir.Value) -> bool:
    return is_constant(value) and value.shape is not None and value.shape.is_static() and len(value.shape) > 0
