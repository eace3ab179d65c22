"""Which values have one entry per token: their second axis is as long as the padding mask's."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from graphcompress.graph.model import Model


def token_values(model: Model, names: Iterable[str] | None = None) -> frozenset[str]:
    """Those of ``names`` (by default of the outputs) that hold one entry per token, by their declared shapes.

    In one batch the shapes alone cannot tell: [batch, classes] looks like [batch, sequence] where a batch is
    as long as there are classes. Values of unknown shape are among them; none is without a mask.
    """
    masks = (value for value in model.graph.inputs if "mask" in (value.name or ""))
    mask = next((value for value in masks if len(value.shape or ()) == 2), None)
    if mask is None:
        return frozenset()
    if names is None:
        return frozenset(it.name or "" for it in model.graph.outputs if _follows(it, mask))
    wanted = set(names)
    found = (value for node in model.graph for value in node.outputs if value.name in wanted)
    return frozenset(value.name or "" for value in found if _follows(value, mask))


def _follows(value: ir.Value, mask: ir.Value) -> bool:
    if value.shape is None or mask.shape is None:
        return True
    if len(value.shape) < 2:
        return False
    own, length = value.shape[1], mask.shape[1]
    return not isinstance(own, int) or own == length
