"""Data types of ONNX as those that PyTorch computes with."""

from __future__ import annotations

import onnx_ir as ir
import torch

_HALF = (ir.DataType.FLOAT16, ir.DataType.BFLOAT16)

_TYPES = {
    ir.DataType.FLOAT: torch.float32,
    ir.DataType.DOUBLE: torch.float64,
    ir.DataType.FLOAT16: torch.float32,
    ir.DataType.BFLOAT16: torch.float32,
    ir.DataType.INT8: torch.int8,
    ir.DataType.INT16: torch.int16,
    ir.DataType.INT32: torch.int32,
    ir.DataType.INT64: torch.int64,
    ir.DataType.UINT8: torch.uint8,
    ir.DataType.UINT16: torch.int32,
    ir.DataType.UINT32: torch.int64,
    ir.DataType.INT2: torch.int8,
    ir.DataType.UINT2: torch.uint8,
    ir.DataType.INT4: torch.int8,
    ir.DataType.UINT4: torch.uint8,
    ir.DataType.BOOL: torch.bool,
}
"""Half precision is computed in float32 (autocast lowers it again); what PyTorch lacks, in a wider type."""

_STORED = {
    **_TYPES,
    ir.DataType.FLOAT16: torch.float16,
    ir.DataType.BFLOAT16: torch.bfloat16,
    ir.DataType.UINT16: torch.uint16,
    ir.DataType.UINT32: torch.uint32,
}

NARROW = frozenset({ir.DataType.INT2, ir.DataType.UINT2, ir.DataType.INT4, ir.DataType.UINT4})
"""Types that hold quantised numbers here, and are computed with nowhere."""


def compute_type(dtype: ir.DataType | None) -> torch.dtype | None:
    """The type that values of ``dtype`` have inside the graph, or None: PyTorch has nothing for it."""
    return None if dtype is None else _TYPES.get(dtype)


def stored_type(dtype: ir.DataType | None) -> torch.dtype | None:
    """The type that a caller passes in or gets back for ``dtype``."""
    return None if dtype is None else _STORED.get(dtype)


def is_half(dtype: ir.DataType | None) -> bool:
    """Whether ``dtype`` is float16 or bfloat16."""
    return dtype in _HALF
