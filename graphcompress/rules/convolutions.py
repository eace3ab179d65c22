"""A convolution is a linear map: of the channels at a position, or of all that a window over them holds."""

from __future__ import annotations

import fnmatch

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import NAME_KEY
from graphcompress.graph.match import array_of, fixed_shape, is_standard, only_reader, operand, producer
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.base import Rule

LAST = np.iinfo(np.int64).max
"""End of a Slice that goes to the end."""


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
    name = _name(weight)
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


LARGEST_WINDOW = 8
"""Positions of a window that are put side by side at most: the input is copied as often."""


def unfold(rw: Rewriter, names: str) -> None:
    """Every Conv over a window of a sequence becomes MatMul over what the window holds, and Add.

    The channels are moved to the end and back, and those of all positions of a window are put side by side:
    as many products as before, which are those of a linear [window · in, out]. Those whose weight does not
    match the glob ``names`` stay; those that are no such Conv are skipped with the reason.
    """
    for node in [node for node in rw.model.graph if is_standard(node, "Conv")]:
        weight = node.inputs[1]
        if weight is None or not fnmatch.fnmatchcase(_name(weight), names):
            continue
        reason = why_no_window(node)
        if reason is None:
            _unfold(rw, node, node.inputs[0], weight)
        else:
            rw.skip(_name(weight), f"a convolution: {reason}")


def _unfold(rw: Rewriter, node: ir.Node, data: ir.Value | None, weight: ir.Value) -> None:
    array = array_of(weight)
    if data is None or array is None:
        return
    outputs, channels, size = array.shape
    stride, dilation = (node.attributes.get_ints(name, [1])[0] for name in ("strides", "dilations"))
    front, behind = node.attributes.get_ints("pads", [0, 0])
    name = _name(weight)
    rows = np.ascontiguousarray(array.transpose(2, 1, 0).reshape(size * channels, outputs))
    matrix = rw.constant(rows, f"{name}.matrix", weight.dtype)
    matrix.metadata_props[NAME_KEY] = name
    b, bias = rw.at(node), operand(node, "B")
    value = b.op("Transpose", data, name="by_position", perm=[0, 2, 1])
    if front or behind:
        value = b.op("Pad", value, b.constant([0, front, 0, 0, behind, 0], "pads"), name="padded")
    places = []
    for position in range(size):
        # From behind, for the length may vary.
        left = (position + 1 - size) * dilation or LAST
        bounds = [b.constant([number], "bound") for number in (position * dilation, left, 1, stride)]
        places.append(b.op("Slice", value, *bounds, name=f"position_{position}"))
    value = b.op("Concat", *places, name="window", axis=-1) if size > 1 else places[0]
    value = b.op("MatMul", value, matrix, name="product")
    value = value if bias is None else b.op("Add", value, bias, name="sum")
    rw.replace(node.outputs[0], b.op("Transpose", value, name="by_channel", perm=[0, 2, 1]), take_name=True)


def _name(weight: ir.Value) -> str:
    return weight.metadata_props.get(NAME_KEY) or weight.name or ""


def why_no_window(node: ir.Node) -> str | None:
    """Why a Conv is no linear map of a small window over a sequence, or None."""
    shape = fixed_shape(node.inputs[1])
    if shape is None or array_of(node.inputs[1]) is None:
        return "its weight is not stored"
    if len(shape) != 3:
        return "it convolves over more than one axis"
    if shape[2] > LARGEST_WINDOW:
        return f"its window is wider than {LARGEST_WINDOW} positions"
    if node.attributes.get_int("group", 1) != 1:
        return "it is grouped"
    if node.attributes.get_string("auto_pad", "NOTSET") != "NOTSET":
        return "it pads by itself"
    return None


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
