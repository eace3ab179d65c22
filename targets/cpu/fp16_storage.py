"""fp16 storage: float weights are kept in half the bytes, and are float again when a session is made."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.graph.model import Model
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter

SMALLEST = 1024
"""Weights of fewer entries stay as they are."""

_LARGEST = float(np.finfo(np.float16).max)
_STORED = "fp16"


def store_floats_as_fp16(model: Model, ctx: Context) -> str:
    """Store every float32 matrix as fp16 with a Cast behind it; a sentence about what was done.

    ONNX Runtime folds the Cast when a session is made and computes in float32, at the same speed; the weights
    are rounded to 11 bits. Left alone: vectors (biases, gains, scales), weights of fewer than ``SMALLEST``
    entries, of numbers that fp16 does not hold, or that a caller may override.
    """
    stored, saved, beyond = 0, 0, 0
    with Rewriter(model, ctx) as rw:
        for value in list(model.graph.initializers.values()):
            if not _is_matrix(value) or value.const_value is None:
                continue
            array = value.const_value.numpy()
            # Not ``>``, which NaN would pass.
            if not np.max(np.abs(array), initial=0.0) <= _LARGEST:
                beyond += 1
                continue
            name = value.name or "weight"
            half = rw.constant(array.astype(np.float16), f"{name}.{_STORED}")
            # In front of all nodes, whichever of them read the weight.
            first = next(iter(model.graph))
            rw.replace(value, rw.at(first, name).op("Cast", half, name="float", to=ir.DataType.FLOAT))
            stored, saved = stored + 1, saved + array.nbytes // 2
    left = f"; {beyond} hold numbers beyond its range and stay float32" if beyond else ""
    return f"{stored} float weights are stored as fp16, {saved / 1e6:.2f} MB less{left}"


def _is_matrix(value: ir.Value) -> bool:
    if value.dtype != ir.DataType.FLOAT or value.shape is None or value.is_graph_input():
        return False
    if value.is_graph_output() or not value.uses() or len(value.shape) < 2:
        return False
    return value.const_value is not None and value.const_value.size >= SMALLEST
