"""int8 tables as compilers want them: dequantised as a whole, then looked up."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.graph.match import (
    array_of,
    fixed_size,
    is_standard,
    only_reader,
    operand,
    operand_beside,
    producer,
    tensor_of,
)
from graphcompress.rewrite.builder import Builder
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
    reader = only_reader(gather.outputs[0], "DequantizeLinear")
    if reader is None or tensor_of(operand(reader, 1)) is None:
        return False
    table = _place(rw, gather).op("DequantizeLinear", gather.inputs[0], *reader.inputs[1:], name="", axis=1)
    _look_up(rw, gather, table, reader.outputs[0])
    return True


def _by_row(rw: Rewriter, gather: ir.Node) -> bool:
    cast = only_reader(gather.outputs[0], "Cast")
    product = only_reader(cast.outputs[0], "Mul") if cast is not None else None
    if cast is None or product is None:
        return False
    steps = producer(operand_beside(product, cast.outputs[0]), "Gather")
    if steps is None or steps.inputs[1] is not gather.inputs[1] or _axis(steps) != 0:
        return False
    scale = array_of(steps.inputs[0])
    if scale is None or scale.shape != (fixed_size(gather.inputs[0], 0), 1):
        return False
    place = _place(rw, gather)
    one_each = place.constant(scale.reshape(-1), "scale")
    zero = place.constant(np.zeros(scale.size, np.int8), "zero_point")
    table = place.op("DequantizeLinear", gather.inputs[0], one_each, zero, name="", axis=0)
    _look_up(rw, gather, table, product.outputs[0])
    return True


def _look_up(rw: Rewriter, gather: ir.Node, table: ir.Value, old: ir.Value) -> None:
    rows = rw.at(gather, table.name).op("Gather", table, gather.inputs[1], name="rows", axis=0)
    rw.replace(old, rows, take_name=True)


def _place(rw: Rewriter, gather: ir.Node) -> Builder:
    table = gather.inputs[0]
    return rw.at(gather, f"{table.name if table is not None else 'table'}.table")
