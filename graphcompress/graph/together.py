"""Files of one model that share their weights: an equal weight is stored once, whichever files read it."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import BinaryIO

import onnx_ir as ir

from graphcompress.graph.model import EXTERNAL_DATA_LIMIT_BYTES

SMALLEST_BYTES = 1024
"""A tensor of fewer bytes stays in the graph of each file: shapes, scalars and small biases."""

ALIGNED_BYTES, ALIGNMENT = 1 << 20, 4096
"""A tensor of so many bytes begins at a page, so that runtimes can map it."""


def write_together(models: Mapping[str, ir.Model], folder: Path) -> None:
    """Write ``models`` (file name → model) to ``folder``; equal weights of several files are stored once.

    A weight lies in ``<file>_data`` beside the first file that has it; those of a single small model lie in
    the file itself. Tensors are read one at a time; afterwards the models read theirs from the files.
    """
    if len(models) == 1 and _bytes_of(models.values()) <= EXTERNAL_DATA_LIMIT_BYTES:
        for name, model in models.items():
            ir.save(model, folder / name)
        return
    stored: dict[tuple[str, bytes], tuple[str, int]] = {}
    for name, model in models.items():
        with (folder / f"{name}_data").open("wb") as data:
            for graph in model.graphs():
                for value in graph.initializers.values():
                    _put_outside(value, data, stored, folder)
        ir.save(model, folder / name)
        if not (folder / f"{name}_data").stat().st_size:
            (folder / f"{name}_data").unlink()


def _bytes_of(models: Iterable[ir.Model]) -> int:
    return sum(
        value.const_value.nbytes
        for model in models
        for graph in model.graphs()
        for value in graph.initializers.values()
        if value.const_value is not None
    )


def _put_outside(
    value: ir.Value, data: BinaryIO, stored: dict[tuple[str, bytes], tuple[str, int]], folder: Path
) -> None:
    """Make the tensor of ``value`` refer to its place on disk; it is written there unless it is there."""
    tensor = value.const_value
    if tensor is None or tensor.nbytes < SMALLEST_BYTES or tensor.dtype == ir.DataType.STRING:
        return
    content = tensor.tobytes()
    key = (f"{tensor.dtype}{tensor.shape}", hashlib.blake2b(content, digest_size=32).digest())
    if key not in stored:
        gap = -data.tell() % ALIGNMENT if len(content) >= ALIGNED_BYTES else 0
        data.write(bytes(gap))
        stored[key] = (Path(data.name).name, data.tell())
        data.write(content)
    location, offset = stored[key]
    value.const_value = ir.ExternalTensor(
        location,
        offset,
        len(content),
        tensor.dtype,
        shape=ir.Shape(tensor.shape.numpy()),
        name=value.name or "",
        base_dir=folder,
    )
