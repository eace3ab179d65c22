"""Symmetric int8 activations as uint8: the same numbers, for kernels that ONNX Runtime is fast with."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.graph.expressions import evaluate, is_constant
from graphcompress.graph.match import is_standard, operand, producer
from graphcompress.graph.model import Model
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter

_SHIFT = 128
"""Adding this to an int8 number gives the uint8 number in the same place of its range."""
_PAIR_LIMIT = 128
"""Largest sum of two neighbouring weights of one sign: u8×s8 products of them fit into 16 bits then."""


def unsigned_activations(model: Model, ctx: Context, *, saturates: bool) -> int:
    """Write int8 activations q with zero point z as uint8 q + 128 with z + 128; returns how many.

    The dequantised numbers are the same. Left as they are where something but a DequantizeLinear reads the
    integers and, where products of the runtime ``saturates`` (x86 without VNNI), where a weight that they are
    multiplied with has neighbours that are too large for that.
    """
    shifted = 0
    with Rewriter(model, ctx) as rw:
        for node in list(model.graph):
            readers = _readers(node)
            if readers and not (saturates and any(_overflows(reader) for reader in readers)):
                _shift(rw, node, readers)
                shifted += 1
    return shifted


def _readers(node: ir.Node) -> list[ir.Node]:
    """The DequantizeLinear that read the int8 activation of ``node``; none where it has other readers."""
    out = node.outputs[0]
    if not is_standard(node, "QuantizeLinear") or is_constant(out) or not _is_int8(node):
        return []
    readers = [use.node for use in out.uses()]
    fit = all(
        is_standard(reader, "DequantizeLinear") and reader.inputs[0] is out and _is_int8(reader)
        for reader in readers
    )
    return readers if fit and not out.is_graph_output() else []


def _is_int8(node: ir.Node) -> bool:
    """Whether the integers have a stored int8 zero point, from which their type follows."""
    zero = operand(node, 2)
    return zero is not None and zero.const_value is not None and zero.const_value.dtype == ir.DataType.INT8


def _overflows(dequantize: ir.Node) -> bool:
    """Whether a product with this activation may not fit into 16 bits for two neighbouring weights."""
    others = (
        producer(value, "DequantizeLinear")
        for use in dequantize.outputs[0].uses()
        for value in use.node.inputs
        if is_constant(value)
    )
    return any(_pair_peak(other.inputs[0]) > _PAIR_LIMIT for other in others if other is not None)


def _pair_peak(weight: ir.Value | None) -> int:
    """Largest sum of two neighbours of one sign along the input axis of a weight [..., in, out]."""
    if weight is None or weight.shape is None or len(weight.shape) < 2:
        return 0
    values = evaluate(weight).astype(np.int32)
    if values.shape[-2] % 2:
        # The last of an odd number of weights has no neighbour: a zero stands in for one.
        values = np.concatenate([values, np.zeros_like(values[..., :1, :])], axis=-2)
    first, second = values[..., 0::2, :], values[..., 1::2, :]
    rises = np.maximum(first, 0) + np.maximum(second, 0)
    falls = np.maximum(-first, 0) + np.maximum(-second, 0)
    return int(max(rises.max(initial=0), falls.max(initial=0)))


def _shift(rw: Rewriter, quantize: ir.Node, readers: list[ir.Node]) -> None:
    for node in (quantize, *readers):
        zero = node.inputs[2]
        if zero is not None and zero.const_value is not None:
            # The sum does not fit into int8, so it is formed in a wider type.
            moved = (zero.const_value.numpy().astype(np.int16) + _SHIFT).astype(np.uint8)
            rw.set_input(node, 2, rw.constant(moved, f"{zero.name}.unsigned"))
    quantize.outputs[0].type = ir.TensorType(ir.DataType.UINT8)
