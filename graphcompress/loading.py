"""Reads an ONNX file and refuses it in one sentence when it is not whole."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import google.protobuf.message
import onnx_ir as ir

from graphcompress.errors import InvalidModelError


def read_model(path: Path) -> ir.Model:
    """The ``onnx_ir`` model in ``path``, with its external data checked but not read.

    Raises:
        InvalidModelError: no such file, not ONNX, truncated, or external data missing, cut short or outside its folder.
    """
    if not path.is_file():
        raise InvalidModelError(f"{path}: no such file" if not path.exists() else f"{path}: not a file")
    try:
        model = ir.load(path)
    except (google.protobuf.message.DecodeError, ValueError, TypeError, AttributeError, KeyError) as error:
        raise InvalidModelError(
            f"{path}: not an ONNX file, or it is truncated ({_first_line(error)})"
        ) from error
    if not model.graph.opset_imports or not model.graph.outputs:
        raise InvalidModelError(f"{path}: not an ONNX file, or it is truncated (it has no graph)")
    for tensor in _tensors(model):
        if isinstance(tensor, ir.ExternalTensor):
            _check_external(path, tensor)
        else:
            _check_inline(path, tensor)
    return model


def _tensors(model: ir.Model) -> Iterator[ir.TensorProtocol]:
    for graph in model.graphs():
        for value in graph.initializers.values():
            if value.const_value is not None:
                yield value.const_value
    for node in ir.traversal.RecursiveGraphIterator(model.graph):
        for attribute in node.attributes.values():
            if attribute.type == ir.AttributeType.TENSOR:
                yield attribute.as_tensor()


def _check_external(path: Path, tensor: ir.ExternalTensor) -> None:
    folder = path.parent.resolve()
    location = Path(str(tensor.location))
    where = f"{path}: external data of {tensor.name!r}"
    file = folder / location
    if location.is_absolute() or ".." in location.parts or not file.resolve().is_relative_to(folder):
        raise InvalidModelError(
            f"{where} lies outside the model's folder ({location}); put it beside the model"
        )
    if not file.is_file():
        raise InvalidModelError(f"{where} is missing: there is no file {location} beside the model")
    needed = (tensor.offset or 0) + tensor.nbytes
    if file.stat().st_size < needed:
        raise InvalidModelError(
            f"{where} is cut short: {location} has {file.stat().st_size:,} bytes, {needed:,} are needed; copy it again"
        )
    if tensor.length is not None and tensor.length < tensor.nbytes:
        raise InvalidModelError(
            f"{where} has {tensor.length:,} bytes, its shape {list(tensor.shape)} needs {tensor.nbytes:,}; export again"
        )


def _check_inline(path: Path, tensor: ir.TensorProtocol) -> None:
    raw = getattr(getattr(tensor, "raw", None), "raw_data", None)
    if raw and len(raw) != tensor.nbytes:
        raise InvalidModelError(
            f"{path}: weight {tensor.name!r} has {len(raw):,} bytes, its shape {list(tensor.shape)} needs "
            f"{tensor.nbytes:,}; the file is damaged, export it again"
        )


def _first_line(error: Exception) -> str:
    return (str(error) or type(error).__name__).splitlines()[0][:120]
