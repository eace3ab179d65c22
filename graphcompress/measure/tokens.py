"""Values of one entry per token: those whose second axis is as long as the mask's, and scores of tokens."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import numpy as np
import onnx_ir as ir

from graphcompress.data.samples import padding_mask
from graphcompress.files.runtime import Feed
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


def without_padding(
    found: Mapping[str, np.ndarray], feed: Feed, per_token: frozenset[str]
) -> dict[str, np.ndarray]:
    """Answers to ``feed``; those of ``per_token`` at real tokens alone: [1, tokens, …]."""
    real = padding_mask(feed)
    if real is None or real.all():
        return dict(found)
    return {
        name: array[real][np.newaxis] if name in per_token and array.shape[:2] == real.shape else array
        for name, array in found.items()
    }


def scores_tokens(name: str, array: np.ndarray) -> bool:
    """Whether an output [batch, length, classes] says how likely each class is, for every token."""
    scores = array.ndim == 3 and array.shape[-1] > 1 and "logits" in name.lower()
    return scores and bool(np.issubdtype(array.dtype, np.floating))


def _follows(shape: ir.Shape | None, mask: ir.Shape | None) -> bool:
    if shape is None or mask is None:
        return True
    if len(shape) < 2:
        return False
    own, length = shape[1], mask[1]
    return not isinstance(own, int) or own == length
