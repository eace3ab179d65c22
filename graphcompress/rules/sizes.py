"""Arithmetic on sizes: what the graph reads with Shape and computes from it."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.arguments import slice_ranges
from graphcompress.analysis.sizes import Size, size_of
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.base import Dim, constant, producer, same_dim

LARGEST_TABLE = 64
"""Elements of an integer value that shape inference knows and that becomes a stored constant."""

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
    data = None if shape is None else shape.inputs[0]
    if (
        shape is None
        or data is None
        or data.shape is None
        or ("start" in shape.attributes and shape is not node)
    ):
        return None
    axis = _axis_asked_for(node, len(data.shape))
    found = None if axis is None else _first_with(rw, data.shape[axis])
    if found is None or found[0] is data:
        return None
    source, position = found
    if shape is node:
        rw.set_input(node, 0, source)
        rw.set_attribute(node, "start", position)
        rw.set_attribute(node, "end", position + 1)
    else:
        sizes = rw.node("Shape", source, before=node, name=f"{source.name}.shape")
        index = np.full(node.inputs[1].shape.numpy(), position, np.int64)  # type: ignore[union-attr]
        rw.set_input(node, 0, sizes)
        rw.set_input(node, 1, rw.constant(index, f"{node.outputs[0].name}.axis"))
    return "size read from a layer instead of an input"


def _axis_asked_for(node: ir.Node, rank: int) -> int | None:
    """The one axis of which a Shape, or a Gather or Slice from a Shape, gives the size."""
    if node.op_type == "Shape":
        start, end = node.attributes.get_int("start", 0), node.attributes.get_int("end", rank)
        start, end, _ = slice(start, end).indices(rank)
        return start if end == start + 1 else None
    if node.op_type == "Slice":
        bounds = (slice_ranges(node) or {}).get(0)
        taken = [] if bounds is None else range(rank)[slice(*bounds)]
        return taken[0] if len(taken) == 1 else None
    index = constant(node.inputs[1])
    if index is None or index.size != 1 or node.attributes.get_int("axis", 0) != 0:
        return None
    return int(index.reshape(())) % rank


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
    out, divisor = node.outputs[0], constant(node.inputs[1])
    size = _size_read(node.inputs[0])
    if size is None or divisor is None or divisor.size != 1 or out.shape is None or len(out.shape) > 1:
        return None
    if divisor.dtype.kind != "i" or out.is_graph_output():
        return None
    quotient = size_of(size).over(Size(int(divisor.reshape(()))))
    found = None if quotient is None else _first_with(rw, quotient.dim())
    if found is None:
        return None
    source, position = found
    sizes = rw.node("Shape", source, before=node, name=f"{source.name}.shape")
    index = rw.constant(np.full([1] * len(out.shape), position, np.int64), f"{out.name}.axis")
    rw.replace(out, rw.node("Gather", sizes, index, before=node, name=f"{out.name}.size", axis=0))
    return "quotient of a size read from an input"


def _size_read(value: ir.Value | None) -> Dim | None:
    """The variable size that an integer scalar, or a vector of one element, holds."""
    node = producer(value, *_SAME_NUMBER, "Shape", "Gather", "Slice")
    while node is not None and node.op_type in _SAME_NUMBER:
        node = producer(node.inputs[0], *_SAME_NUMBER, "Shape", "Gather", "Slice")
    shape = node if node is None or node.op_type == "Shape" else producer(node.inputs[0], "Shape")
    data = None if shape is None else shape.inputs[0]
    if node is None or shape is None or data is None or data.shape is None:
        return None
    if shape is not node and shape.attributes.keys() & {"start", "end"}:
        return None
    axis = _axis_asked_for(node, len(data.shape))
    return None if axis is None else data.shape[axis]
