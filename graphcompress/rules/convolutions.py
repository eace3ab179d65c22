"""A convolution with a kernel of 1 is a linear map of the channels at every position."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import NAME_KEY
from graphcompress.graph.match import array_of, fixed_shape, only_reader, operand, producer
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.base import Rule


def pointwise(rw: Rewriter, node: ir.Node) -> str | None:
    """Conv with a kernel of 1 next to a Transpose of the channels becomes MatMul and Add.

    The channels are moved to the end and back; the Transpose that stands before or after undoes one of the
    two, so that there are no more of them than before. A Conv between values in channel order is left alone:
    there a product would cost two Transposes more.
    """
    data, weight = node.inputs[:2]
    array = array_of(weight) if why_not(node) is None else None
    if data is None or weight is None or array is None:
        return None
    rank = array.ndim
    to_end, to_front = [0, *range(2, rank), 1], [0, rank - 1, *range(1, rank - 1)]
    before, after = producer(data, "Transpose"), only_reader(node.outputs[0], "Transpose")
    if not (_moves(before, to_front) or _moves(after, to_end)):
        return None
    name = weight.metadata_props.get(NAME_KEY) or weight.name or ""
    matrix = rw.constant(
        np.ascontiguousarray(array.reshape(array.shape[:2]).T), f"{name}.matrix", weight.dtype
    )
    matrix.metadata_props[NAME_KEY] = name
    rw.touch(name, "Conv with a kernel of 1 became MatMul")
    b, bias = rw.at(node), operand(node, "B")
    value = b.op("Transpose", data, name="by_position", perm=to_end)
    value = b.op("MatMul", value, matrix, name="product")
    value = value if bias is None else b.op("Add", value, bias, name="sum")
    value = b.op("Transpose", value, name="by_channel", perm=to_front)
    rw.replace(node.outputs[0], value, take_name=True)
    return "Conv with a kernel of 1"


def why_not(node: ir.Node) -> str | None:
    """Why a Conv is no linear map of its channels, or None."""
    shape = fixed_shape(node.inputs[1])
    if shape is None:
        return "the shape of its weight is not known"
    if any(size != 1 for size in shape[2:]):
        return "it convolves over more than one position"
    if node.attributes.get_int("group", 1) != 1:
        return "it is grouped"
    if any(node.attributes.get_ints("pads", [])) or any(
        step != 1 for step in node.attributes.get_ints("strides", [])
    ):
        return "it pads or strides"
    if node.attributes.get_string("auto_pad", "NOTSET") not in ("NOTSET", "VALID"):
        return "it pads by itself"
    return None


def _moves(node: ir.Node | None, order: list[int]) -> bool:
    """Whether the Transpose ``node`` is one by ``order``."""
    return node is not None and list(node.attributes.get_ints("perm", [])) == order


RULES: dict[str, tuple[Rule, ...]] = {"Conv": (pointwise,)}
"""Operator → rules, tried in this order."""
