"""Which stored numbers are trained, and which belong to the architecture."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.graph.match import producer

_LARGEST = 1e30
"""A table with a larger number is a mask."""

_BIASED = frozenset({"Conv", "Gemm", "LayerNormalization", "GroupNormalization", "InstanceNormalization"})
_ANGLES = frozenset({"Cos", "Sin"})
_STATISTICS = {"BatchNormalization": (3, 4), "RotaryEmbedding": (1, 2), "Range": (0, 1, 2), "Resize": (1, 2)}
"""Operators with inputs that are fixed numbers, and which."""
_ARGUMENTS = frozenset({"Clip", "Pad", "OneHot", "ConstantOfShape"})
_PATH = frozenset(
    {"Add", "Cast", "Concat", "Expand", "MatMul", "Mul", "Reshape", "Slice", "Transpose", "Unsqueeze"}
)


def is_frozen(value: ir.Value) -> bool:
    """Whether a stored tensor of floats is part of the architecture rather than a weight.

    These are: single numbers (1/√d, ε) except a bias of one entry; masks; running statistics; the angles of
    rotary positions.
    """
    if value.const_value is None:
        return True
    uses = value.uses()
    if value.const_value.size <= 1 and not any(_is_bias(node) for node, _ in uses):
        return True
    if uses and all(_is_argument(node, index) for node, index in uses):
        return True
    if uses and all(_leads_to_angles(node) for node, _ in uses):
        return True
    return len(value.const_value.shape) == 0 or _is_mask(value.const_value)


def _is_argument(node: ir.Node, index: int) -> bool:
    return index in _STATISTICS.get(node.op_type, ()) or (node.op_type in _ARGUMENTS and index > 0)


def _is_bias(node: ir.Node) -> bool:
    if node.op_type in _BIASED:
        return True
    return node.op_type == "Add" and any(producer(value, "MatMul") for value in node.inputs)


def _is_mask(tensor: ir.TensorProtocol) -> bool:
    array = tensor.numpy()
    if array.dtype.kind not in "f":
        array = array.astype(np.float32)
    return bool(array.size) and not float(np.abs(array).max()) < _LARGEST


def _leads_to_angles(node: ir.Node) -> bool:
    """Whether all that is computed from ``node`` is a sine or a cosine."""
    pending, seen = [node], set()
    while pending:
        current = pending.pop()
        if current in seen or current.op_type in _ANGLES:
            continue
        seen.add(current)
        readers = [reader for output in current.outputs for reader in output.consumers()]
        if current.op_type not in _PATH or not readers:
            return False
        pending.extend(readers)
    return True
