"""int8 tables as compilers want them: dequantised as a whole, then looked up."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.graph.match import is_standard, only_reader
from graphcompress.rewrite.rewriter import Rewriter


def dequantise_before_lookup(rw: Rewriter) -> int:
    """``DequantizeLinear(Gather(int8 table))`` becomes ``Gather(DequantizeLinear(int8 table))``.

    Returns how many. The same for rows of an int8 table that are cast and multiplied by a scale per row.
    The numbers are the same; int8 constants may then be read by a DequantizeLinear alone, which TensorRT
    demands, and which it does not unfold: the engine keeps the table in int8.
    """
    done = 0
    for node in list(rw.model.graph):
        if is_standard(node, "Gather") and _is_table(node.inputs[0]) and _axis(node) == 0:
            done += _by_column(rw, node) or _by_row(rw, node)
    return done


def _is_table(value: ir.Value | None) -> bool:
    stored = value.const_value if value is not None else None
    return stored is not None and stored.dtype == ir.DataType.INT8 and len(stored.shape) == 2


def _axis(node: ir.Node) -> int:
    return node.attributes.get_int("axis", 0)


def _by_column(rw: Rewriter, gather: ir.Node) -> bool:
    reader = only_reader(gather.outputs[0])
    if reader is None or not is_standard(reader, "DequantizeLinear"):
        return False
    scale = reader.inputs[1]
    if scale is None or scale.const_value is None:
        return False
    table = rw.node(
        "DequantizeLinear", gather.inputs[0], *reader.inputs[1:], before=gather, name=_name(gather), axis=1
    )
    _look_up(rw, gather, table, reader.outputs[0])
    return True


def _by_row(rw: Rewriter, gather: ir.Node) -> bool:
    cast = only_reader(gather.outputs[0])
    product = only_reader(cast.outputs[0]) if cast is not None and is_standard(cast, "Cast") else None
    if cast is None or product is None or not is_standard(product, "Mul"):
        return False
    steps = next((v.producer() for v in product.inputs if v is not None and v.producer() is not cast), None)
    if steps is None or not is_standard(steps, "Gather") or steps.inputs[1] is not gather.inputs[1]:
        return False
    scale = steps.inputs[0].const_value if steps.inputs[0] is not None else None
    values = gather.inputs[0]
    rows = 0 if values is None or values.shape is None else values.shape[0]
    if scale is None or list(scale.shape) != [rows, 1] or _axis(steps) != 0:
        return False
    name = _name(gather)
    one_each = rw.constant(scale.numpy().reshape(-1), f"{name}.scale")
    zero = rw.constant(np.zeros(scale.size, np.int8), f"{name}.zero_point")
    table = rw.node("DequantizeLinear", values, one_each, zero, before=gather, name=name, axis=0)
    _look_up(rw, gather, table, product.outputs[0])
    return True


def _look_up(rw: Rewriter, gather: ir.Node, table: ir.Value, old: ir.Value) -> None:
    rows = rw.node("Gather", table, gather.inputs[1], before=gather, name=f"{table.name}.rows", axis=0)
    rows.type, rows.shape = old.type, old.shape
    rw.supersede(old, rows)


def _name(gather: ir.Node) -> str:
    value = gather.inputs[0]
    return f"{value.name if value is not None else 'table'}.table"
