"""Reads an ONNX file without its large weights: they stay where they are and are mapped when touched.

A weight inside an ONNX file is a run of bytes at some offset, just as in a file of external data; so it is
described as external data of that very file. Only the tags and lengths around it are read, in protobuf's
wire format (protobuf.dev/programming-guides/encoding), with the field numbers of onnx.proto.
"""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from pathlib import Path

import onnx
from google.protobuf.message import DecodeError

from graphcompress.files.reading.protos import KINDS, number_of_bytes

LARGE_BYTES = 1 << 16
"""Weights of fewer bytes (64 KiB) are read with the graph: to map each by itself would take longer."""

_GRAPH = onnx.ModelProto.DESCRIPTOR.fields_by_name["graph"].number
_INITIALIZER = onnx.GraphProto.DESCRIPTOR.fields_by_name["initializer"].number
_RAW_DATA = onnx.TensorProto.DESCRIPTOR.fields_by_name["raw_data"].number

_VARINT, _EIGHT_BYTES, _LENGTH, _FOUR_BYTES = 0, 1, 2, 5

Span = tuple[int, int]
"""First byte and the one after the last."""


def skim(path: Path) -> onnx.ModelProto:
    """The message in ``path``; each large raw weight of its main graph is external data of ``path`` itself.

    Raises:
        DecodeError: not a protobuf message, or cut short.
        OSError: the file cannot be read.
    """
    model = onnx.ModelProto()
    with path.open("rb") as file:
        # An empty file cannot be mapped.
        if not path.stat().st_size:
            return model
        with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            rest = bytearray()
            for number, whole, body in _fields(data, (0, len(data))):
                if number == _GRAPH:
                    _read_graph(data, body, model.graph, path.name)
                else:
                    rest += data[slice(*whole)]
            model.MergeFromString(bytes(rest))
    return model


def _read_graph(data: mmap.mmap, span: Span, graph: onnx.GraphProto, location: str) -> None:
    rest = bytearray()
    # An empty graph is there all the same, and the checks tell it from a missing one.
    graph.SetInParent()
    for number, whole, body in _fields(data, span):
        if number == _INITIALIZER:
            graph.initializer.append(_tensor(data, body, location))
        else:
            rest += data[slice(*whole)]
    graph.MergeFromString(bytes(rest))


def _tensor(data: mmap.mmap, span: Span, location: str) -> onnx.TensorProto:
    """The tensor at ``span``; whole when its size is not what its shape asks for, for the checks to see."""
    rest = bytearray()
    raw: Span | None = None
    for number, whole, body in _fields(data, span):
        if number == _RAW_DATA and body[1] - body[0] >= LARGE_BYTES and raw is None:
            raw = body
        else:
            rest += data[slice(*whole)]
    tensor = onnx.TensorProto()
    tensor.MergeFromString(bytes(rest))
    if raw is None:
        return tensor
    length = raw[1] - raw[0]
    # A tensor whose sizes disagree is kept whole, so that the checks refuse it as they refuse any other.
    if tensor.data_type not in KINDS or tensor.external_data or number_of_bytes(tensor) != length:
        tensor.raw_data = data[slice(*raw)]
        return tensor
    tensor.data_location = onnx.TensorProto.EXTERNAL
    for key, value in (("location", location), ("offset", str(raw[0])), ("length", str(length))):
        tensor.external_data.add(key=key, value=value)
    return tensor


def _fields(data: mmap.mmap, span: Span) -> Iterator[tuple[int, Span, Span]]:
    """Number, whole span and span of the content of every field of the message at ``span``."""
    start, end = span
    while start < end:
        tag, body = _varint(data, start, end)
        kind = tag & 7
        if kind == _LENGTH:
            length, body = _varint(data, body, end)
            stop = body + length
        elif kind == _VARINT:
            _, stop = _varint(data, body, end)
        elif kind in (_EIGHT_BYTES, _FOUR_BYTES):
            stop = body + (8 if kind == _EIGHT_BYTES else 4)
        else:
            raise DecodeError(f"byte {start:,} begins no field")
        # Field numbers begin at one, so a tag below eight is damage.
        if stop > end or tag < 8:
            raise DecodeError(f"the field at byte {start:,} does not end within its message")
        yield tag >> 3, (start, stop), (body, stop)
        start = stop


def _varint(data: mmap.mmap, start: int, end: int) -> tuple[int, int]:
    """The number whose first byte is at ``start``, and the position after it."""
    value = 0
    # Ten bytes of seven bits hold any number of 64 bits.
    for position in range(start, min(start + 10, end)):
        byte = data[position]
        value |= (byte & 0x7F) << 7 * (position - start)
        if byte < 0x80:
            return value, position + 1
    raise DecodeError(f"the number at byte {start:,} does not end")
