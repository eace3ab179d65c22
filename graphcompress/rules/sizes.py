"""Arithmetic on sizes: what the graph reads with Shape and computes from it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.files.declared import Dim
from graphcompress.graph.match import integers_of, operand, producer, rank_of, scalar, shape_of, slice_ranges
from graphcompress.graph.sizes import Size, same_dim, size_of
from graphcompress.rewrite.rewriter import Rewriter

LARGEST_TABLE = 64
"""An integer value that shape inference knows becomes a stored constant up to this many elements."""

_SAME_NUMBER = ("Squeeze", "Unsqueeze", "Identity")


def known_value(rw: Rewriter, node: ir.Node) -> str | None:
    """A value that shape inference computed becomes a constant: Shape, Gather, Concat … of fixed sizes."""
    value = node.outputs[0]
    tensor = value.const_value
    if len(node.outputs) != 1 or tensor is None or value.is_graph_output() or tensor.size > LARGEST_TABLE:
        return None
    if not value.uses() or tensor.dtype not in (ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL):
        return None
    rw.replace(value, rw.constant(tensor.numpy(), f"{value.name}.folded"))
    return "shape arithmetic on fixed sizes"


def size_of_input(rw: Rewriter, node: ir.Node) -> str | None:
    """One size of a value is read from the input of the model that has it: then all that read it are alike.

    Exporters ask the hidden state of every layer for the batch and the length.
    """
    shape = node if node.op_type == "Shape" else producer(node.inputs[0], "Shape")
    data = operand(shape, 0)
    sizes = shape_of(data)
    # A Shape with a start counts from there, so that an index into it names another axis.
    if shape is None or sizes is None or ("start" in shape.attributes and shape is not node):
        return None
    axis = _axis_asked_for(node, len(sizes))
    found = None if axis is None else _first_with(rw, sizes[axis])
    if found is None or found[0] is data:
        return None
    source, position = found
    if shape is node:
        rw.set_input(node, 0, source)
        rw.set_attribute(node, "start", position)
        rw.set_attribute(node, "end", position + 1)
    else:
        rank = rank_of(node.inputs[1]) or 0  # the index is one number, so far
        rw.set_input(node, 0, rw.at(node, source.name).op("Shape", source, name="shape"))
        rw.set_input(node, 1, rw.at(node).constant(np.full([1] * rank, position), "axis"))
    return "size read from a layer instead of an input"


def _axis_asked_for(node: ir.Node, rank: int) -> int | None:
    """The one axis of which a Shape, or a Gather or Slice from a Shape, gives the size."""
    if node.op_type == "Shape":
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
        # Negative and too large bounds of a Shape are clamped as those of a slice are.
        start, end, _ = slice(start, end).indices(rank)
        return start if end == start + 1 else None
    if node.op_type == "Slice":
        bounds = (slice_ranges(node) or {}).get(0)
        taken = [] if bounds is None else range(rank)[slice(*bounds)]
        return taken[0] if len(taken) == 1 else None
    index = scalar(node.inputs[1])
    return None if index is None or node.attributes.get_int("axis", 0) != 0 else int(index) % rank


def _first_with(rw: Rewriter, dim: Dim) -> tuple[ir.Value, int] | None:
    """The first input of the model with an axis of the variable size ``dim``, and that axis."""
    if isinstance(dim, int):
        return None
    for value in rw.model.graph.inputs:
        for axis, other in enumerate(value.shape or ()):
            if same_dim(dim, other):
                return value, axis
    return None


def quotient_of_size(rw: Rewriter, node: ir.Node) -> str | None:
    """A size divided by a number is read from the input of the model that has the quotient.

    Exporters find the batch as that of flattened heads over their number, which is wrong once heads are cut.
    """
    out, divisor = node.outputs[0], integers_of(node.inputs[1]) or ()
    size, rank = size_read(node.inputs[0]), rank_of(out)
    if size is None or len(divisor) != 1 or rank is None or rank > 1 or out.is_graph_output():
        return None
    quotient = size_of(size).over(Size(divisor[0]))
    found = None if quotient is None else _first_with(rw, quotient.dim())
    if found is None:
        return None
    source, position = found
    sizes, b = rw.at(node, source.name).op("Shape", source, name="shape"), rw.at(node)
    index = b.constant(np.full([1] * rank, position), "axis")
    rw.replace(out, b.op("Gather", sizes, index, name="size", axis=0))
    return "quotient of a size read from an input"


def size_read(value: ir.Value | None) -> Dim | None:
    """The variable size that an integer scalar, or a vector of one element, holds."""
    while same := producer(value, *_SAME_NUMBER):
        value = same.inputs[0]
    node = producer(value, "Shape", "Gather", "Slice")
    shape = producer(value, "Shape") or producer(operand(node, 0), "Shape")
    sizes = shape_of(operand(shape, 0))
    if node is None or shape is None or sizes is None:
        return None
    if shape is not node and shape.attributes.keys() & {"start", "end"}:
        return None
    axis = _axis_asked_for(node, len(sizes))
    return None if axis is None else sizes[axis]
