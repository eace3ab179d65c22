"""Walks over a parsed ONNX message: its graphs, tensors, names and order, as they are in the file."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator

import onnx

KINDS: dict[int, str] = {number: name for name, number in onnx.TensorProto.DataType.items()}
"""Number of a data type → its name."""

PACKED_BITS = {"INT4": 4, "UINT4": 4, "FLOAT4E2M1": 4, "INT2": 2, "UINT2": 2}
"""Data types of which several elements share a byte, and their bits."""


def graphs(model: onnx.ModelProto) -> Iterator[onnx.GraphProto]:
    """The main graph and all subgraphs, also those of functions."""
    pending = [model.graph]
    for function in model.functions:
        pending.extend(subgraphs(function.node))
    while pending:
        graph = pending.pop()
        yield graph
        pending.extend(subgraphs(graph.node))


def tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Initializers of ``graph`` and tensors in the attributes of its nodes."""
    yield from graph.initializer
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            yield from attribute.tensors


def subgraphs(members: Iterable[onnx.NodeProto]) -> Iterator[onnx.GraphProto]:
    """Graphs in the attributes of ``members``, not those within them."""
    for node in members:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                yield attribute.g
            yield from attribute.graphs


def nodes(model: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """Nodes of all graphs and functions."""
    for graph in graphs(model):
        yield from graph.node
    for function in model.functions:
        yield from function.node


def reads(node: onnx.NodeProto) -> set[str]:
    """Names that ``node`` reads, also from inside its subgraphs."""
    names = set(filter(None, node.input))
    for inner in subgraphs([node]):
        for part in inner.node:
            names |= reads(part)
        names.update(value.name for value in inner.output)
    return names


def is_sorted(graph: onnx.GraphProto) -> bool:
    """Whether each node comes after those that it reads, as ONNX asks (ONNX Runtime runs others, too)."""
    pending = {name for node in graph.node for name in node.output}
    for node in graph.node:
        if not pending.isdisjoint(reads(node)):
            return False
        pending.difference_update(node.output)
    return True


def number_of_bytes(tensor: onnx.TensorProto) -> int:
    """Bytes that the shape and the data type of ``tensor`` ask for."""
    kind, elements = KINDS[tensor.data_type], math.prod(int(size) for size in tensor.dims)
    if kind in PACKED_BITS:
        return math.ceil(elements * PACKED_BITS[kind] / 8)
    itemsize: int = onnx.helper.tensor_dtype_to_np_dtype(tensor.data_type).itemsize
    return elements * itemsize
