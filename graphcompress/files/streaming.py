"""Writes an ONNX file weight by weight: memory holds the graph and one weight, not the whole file twice."""

from __future__ import annotations

from pathlib import Path
from typing import IO

import onnx
import onnx_ir as ir

from graphcompress.files.stored import write_bytes

_LEAST_BYTES = 1 << 16
"""Weights of fewer bytes are written with the graph."""

_MODEL_GRAPH, _GRAPH_INITIALIZER, _TENSOR_RAW_DATA = 7, 5, 9
"""Numbers of fields in onnx.proto."""

_DELIMITED = 2
"""Kind of a field that begins with its length."""


def _drop_types_of_weights(graph: onnx.GraphProto) -> None:
    """Weights say their type and shape themselves; of a small model a second time is some percent of it."""
    stored = {tensor.name for tensor in graph.initializer}
    kept = [value for value in graph.value_info if value.name not in stored or value.metadata_props]
    del graph.value_info[:]
    graph.value_info.extend(kept)


def write_model(model: ir.Model, path: Path) -> None:
    """Write ``model`` to ``path`` with its weights in the file, as :func:`onnx_ir.save` does.

    A serialised message is its fields one after the other, in any order
    (https://protobuf.dev/programming-guides/encoding), so the large weights of the main graph come last.
    """
    kept = dict(model.graph.initializers)
    large = {name: value.const_value for name, value in kept.items() if _is_large(value.const_value)}
    for name in large:
        del model.graph.initializers[name]
    try:
        proto = ir.to_proto(model)
    finally:
        model.graph.initializers.clear()
        model.graph.initializers.update(kept)
    _drop_types_of_weights(proto.graph)
    graph = proto.graph.SerializeToString()
    proto.ClearField("graph")
    weights = [(_head(name, tensor), tensor) for name, tensor in large.items() if tensor is not None]
    size = sum(
        len(_begin(_GRAPH_INITIALIZER, len(head) + tensor.nbytes)) + len(head) + tensor.nbytes
        for head, tensor in weights
    )
    with path.open("wb") as file:
        file.write(proto.SerializeToString())
        file.write(_begin(_MODEL_GRAPH, len(graph) + size))
        file.write(graph)
        for head, tensor in weights:
            _write_weight(head, tensor, file)


def _is_large(tensor: ir.TensorProtocol | None) -> bool:
    if tensor is None or isinstance(tensor, ir.ExternalTensor) or tensor.dtype == ir.DataType.STRING:
        return False
    return tensor.nbytes >= _LEAST_BYTES


def _head(name: str, tensor: ir.TensorProtocol) -> bytes:
    """A TensorProto up to its bytes."""
    proto = onnx.TensorProto(name=name, data_type=tensor.dtype.value, dims=tensor.shape.numpy())
    head: bytes = proto.SerializeToString()
    return head + _begin(_TENSOR_RAW_DATA, tensor.nbytes)


def _write_weight(head: bytes, tensor: ir.TensorProtocol, file: IO[bytes]) -> None:
    file.write(_begin(_GRAPH_INITIALIZER, len(head) + tensor.nbytes))
    file.write(head)
    write_bytes(tensor, file)


def _begin(field: int, length: int) -> bytes:
    """What comes before ``length`` bytes of a field: its number and kind, and the length."""
    return _varint(field << 3 | _DELIMITED) + _varint(length)


def _varint(number: int) -> bytes:
    groups = []
    while number >= 1 << 7:
        groups.append(number & 0x7F | 0x80)
        number >>= 7
    return bytes([*groups, number])
