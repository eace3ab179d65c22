"""Makes the bytes of a file in the ORT format independent of the process that wrote it."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from flatbuffers import Builder
from flatbuffers.number_types import Int8Flags, SOffsetTFlags, Uint32Flags
from flatbuffers.table import Table

IDENTIFIER = b"ORTM"
ALIGNMENT = 16
"""Stored weights lie at multiples of this many bytes, counted from the end of the file."""

Operands = tuple[tuple[int, int], ...]
"""Kind (0 is an input, 1 an output) and number of each operand that has a type."""
Kernel = tuple[bytes, tuple[tuple[bytes, Operands], ...]]
"""An operator, and the operands of each of its types."""

T = TypeVar("T")


def order_kernels(path: Path) -> None:
    """Write the file ``path`` anew, with its list of operators and their types in the order of the names.

    ONNX Runtime writes this list as its hash table has it, and that depends on addresses of the process: on
    where the system loads libraries, and on lengths of paths. All else in the file comes in the order of the
    graph. A file of this format grows from its end to its beginning, and the list is written after the
    model: from the table of the model on, the file is copied as it is. Tables and their fields are those of
    ``onnxruntime/core/flatbuffers/schema/ort.fbs``.
    """
    content = path.read_bytes()
    session = Table(content, Table(content, 0).Indirect(0))
    model = _table(session, 1)
    # What describes the fields of a table lies in front of it, or behind it where an equal one shares it.
    begin = min(model.Pos, model.Pos - model.Get(SOffsetTFlags, model.Pos))
    kept = len(content) - begin
    padding = -kept % ALIGNMENT
    kernels = sorted(_each(_table(session, 3), 0, _kernel))
    # The builder counts from the end of what it has made: what follows lies at negative positions.
    head = _head(_string(session, 0), kernels, begin - model.Pos - padding)
    written = path.with_name(f"{path.name}.ordered")
    with written.open("wb") as file:
        file.write(head + bytes(padding))
        file.write(memoryview(content)[begin:])
    shutil.move(written, path)


# ---- reading: field ``number`` of a table


def _field(table: Table, number: int) -> int:
    return int(table.Offset(4 + 2 * number))


def _table(table: Table, number: int) -> Table:
    return Table(table.Bytes, table.Indirect(table.Pos + _field(table, number)))


def _string(table: Table, number: int) -> bytes:
    return bytes(table.String(table.Pos + _field(table, number)))


def _each(table: Table, number: int, read: Callable[[Table], T]) -> tuple[T, ...]:
    field = _field(table, number)
    if not field:
        return ()
    first = table.Vector(field)
    places = range(first, first + 4 * table.VectorLen(field), 4)
    return tuple(read(Table(table.Bytes, table.Indirect(place))) for place in places)


def _kernel(entry: Table) -> Kernel:
    return _string(entry, 0), tuple(sorted(_each(entry, 1, _type)))


def _type(entry: Table) -> tuple[bytes, Operands]:
    return _string(entry, 0), _each(entry, 1, _operand)


def _operand(entry: Table) -> tuple[int, int]:
    return entry.GetSlot(4, 0, Int8Flags), entry.GetSlot(6, 0, Uint32Flags)


# ---- writing: what a table points to is written before it


def _head(version: bytes, kernels: list[Kernel], model: int) -> bytes:
    """The file up to the model, which lies at ``model``."""
    builder = Builder()
    entries = [_pair(builder, name, [_made_type(builder, *one) for one in types]) for name, types in kernels]
    table = _vector(builder, entries)
    builder.StartObject(1)
    builder.PrependUOffsetTRelativeSlot(0, table, 0)
    resolver, text = builder.EndObject(), builder.CreateString(version)
    builder.StartObject(4)
    for field, place in ((0, text), (1, model), (3, resolver)):
        builder.PrependUOffsetTRelativeSlot(field, place, 0)
    builder.minalign = ALIGNMENT
    builder.Finish(builder.EndObject(), IDENTIFIER)
    return bytes(builder.Output())


def _made_type(builder: Builder, name: bytes, operands: Operands) -> int:
    made = []
    for kind, number in operands:
        builder.StartObject(2)
        builder.PrependUint32Slot(1, number, 0)
        builder.PrependInt8Slot(0, kind, 0)
        made.append(builder.EndObject())
    return _pair(builder, name, made)


def _pair(builder: Builder, name: bytes, entries: list[int]) -> int:
    """A table of a name and a list."""
    text, vector = builder.CreateString(name), _vector(builder, entries)
    builder.StartObject(2)
    builder.PrependUOffsetTRelativeSlot(0, text, 0)
    builder.PrependUOffsetTRelativeSlot(1, vector, 0)
    return int(builder.EndObject())


def _vector(builder: Builder, entries: list[int]) -> int:
    builder.StartVector(4, len(entries), 4)
    for entry in reversed(entries):
        builder.PrependUOffsetTRelative(entry)
    return int(builder.EndVector())
