"""What an opset has: the opsets that matter here, and the definitions of the standard."""

from __future__ import annotations

import onnx

NEWEST_OPSET = 21
"""Opsets above this are read, and written as this one where nothing in the graph needs more."""

NEWEST_IR_VERSION = 10
"""File format of opset 21; read by ONNX Runtime 1.18 and later."""

AXES_AS_INPUT = 18
"""Since this opset every reduction reads its axes from an input, and Split says how many parts it makes."""


def definition(op_type: str, opset: int) -> onnx.defs.OpSchema | None:
    """What ``op_type`` is in ``opset``; None where it came later, or means nothing any more."""
    try:
        found = onnx.defs.get_schema(op_type, opset, "")
    except onnx.defs.SchemaError:
        return None
    return None if found.deprecated else found
