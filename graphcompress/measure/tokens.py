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
        found = list(model.graph.outputs)
    else:
        wanted = set(names)
        found = [value for node in model.graph for value in node.outputs if value.name in wanted]
    return frozenset(value.name or "" for value in found if _follows(model.declared.of(value), mask.shape))


def _follows(shape: ir.Shape | None, mask: ir.Shape | None) -> bool:
    if shape is None or mask is None:
        return True
    if len(shape) < 2:
        return False
    own, length = shape[1], mask[1]
    return not isinstance(own, int) or own == length
