"""Which positions of an axis are read, and the operators that pick them out of a value."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.files.declared import Dim
from graphcompress.graph.sizes import size_of
from graphcompress.rewrite.builder import Builder


@dataclass(frozen=True)
class Fixed:
    """The positions ``indices``, the same ones in every run; a negative one counts from the end."""

    indices: tuple[int, ...]

    def __str__(self) -> str:
        return f"position {', '.join(map(str, self.indices))}"

    def dim(self, _: Dim) -> Dim:
        """How many there are."""
        return len(self.indices)

    def places(self, asked: Sequence[int]) -> list[int]:
        """Where positions that are ``asked`` for stand among these."""
        return [self.indices.index(index) for index in asked]


@dataclass(frozen=True)
class Window:
    """Every ``step``-th position from ``start`` up to ``stop``, or to the end of a shorter axis."""

    start: int
    stop: int
    step: int

    def __str__(self) -> str:
        return f"positions {self.start} to {self.stop}"

    def dim(self, size: Dim) -> Dim:
        """How many there are of an axis of ``size``: a symbol where that is free."""
        if isinstance(size, int):
            return len(range(size)[self.start : self.stop : self.step])
        return ir.SymbolicDim(f"window_{self.start}_{self.stop}_{self.step}_of_{size.value}")


@dataclass(frozen=True)
class Computed:
    """The positions that ``index``, one number or a vector, holds; they are the same ones for the batch."""

    index: ir.Value

    def __str__(self) -> str:
        return f"the positions in {self.index.name}"

    def dim(self, _: Dim) -> Dim:
        """How many there are."""
        shape = self.index.shape
        return 1 if shape is None or not len(shape) else shape[0]


@dataclass(frozen=True)
class PerRow:
    """One position for each row of the batch: those that ``index`` [batch] holds."""

    index: ir.Value

    def __str__(self) -> str:
        return f"one position of each row ({self.index.name})"

    def dim(self, _: Dim) -> Dim:
        """One."""
        return 1


Rows = Fixed | Window | Computed | PerRow


@dataclass(frozen=True)
class Demand:
    """The part of a value that is read.

    Attributes:
        rows: positions along the axis ``axis``.
        batch: the axis along which ``PerRow`` gives one for each.
        outer: where ``axis`` is flattened, the size of the axes that were merged into it from the left.
    """

    rows: Rows
    axis: int
    batch: int | None = None
    outer: Dim | None = None

    def narrowed(self, sizes: Sequence[Dim] | ir.Shape) -> list[Dim]:
        """The shape that is left of ``sizes``."""
        left = list(sizes)
        size = left[self.axis]
        if self.outer is None:
            left[self.axis] = self.rows.dim(size)
        else:
            inner = size_of(size).over(size_of(self.outer))
            count = self.rows.dim(size if inner is None else inner.dim())
            left[self.axis] = (size_of(self.outer) * size_of(count)).dim()
        return left

    def joined(self, other: Demand) -> Demand | None:
        """What both read; None where that is no such part."""
        if self == other:
            return self
        if not (isinstance(self.rows, Fixed) and isinstance(other.rows, Fixed)):
            return None
        if (self.axis, self.outer) != (other.axis, other.outer):
            return None
        both = dict.fromkeys((*self.rows.indices, *other.rows.indices))
        return Demand(Fixed(tuple(both)), self.axis, self.batch, self.outer)


def picked(b: Builder, value: ir.Value, wanted: Demand, held: Demand | None) -> ir.Value:
    """The part ``wanted`` of ``value``, which is whole, or holds the fixed positions ``held``."""
    rows, axis = wanted.rows, wanted.axis
    if isinstance(rows, Fixed):
        among = held.rows if held is not None and isinstance(held.rows, Fixed) else None
        kept = list(rows.indices) if among is None else among.places(rows.indices)
        return b.op("Gather", value, kept, name="needed", axis=axis)
    if isinstance(rows, Window):
        bounds = ([rows.start], [rows.stop], [axis], [rows.step])
        return b.op("Slice", value, *bounds, name="needed")
    if isinstance(rows, Computed):
        return b.op("Gather", value, _as_vector(b, rows.index), name="needed", axis=axis)
    return _picked_per_row(b, value, rows.index, axis, wanted.batch or 0)


def _as_vector(b: Builder, index: ir.Value) -> ir.Value:
    return (
        index if index.shape is not None and len(index.shape) else b.op("Reshape", index, [1], name="index")
    )


def _picked_per_row(b: Builder, value: ir.Value, index: ir.Value, axis: int, batch: int) -> ir.Value:
    """``value`` [.., batch, .., positions, ..] → the same axes, with one position for each row."""
    sizes = value.shape or ir.Shape(())
    order = [batch, axis, *(other for other in range(len(sizes)) if other not in (batch, axis))]
    value = _permuted(b, value, order)
    if sizes[batch] == 1:  # one row stands for the whole batch
        rows = b.op("Gather", b.op("Squeeze", value, [0], name="row"), index, name="rows", axis=0)
        value = b.op("Unsqueeze", rows, [1], name="needed")
    else:
        places = b.op("Unsqueeze", index, [1, 2], name="places")
        value = b.op("GatherND", value, places, name="needed", batch_dims=1)
    return _permuted(b, value, [order.index(other) for other in range(len(order))])


def _permuted(b: Builder, value: ir.Value, order: list[int]) -> ir.Value:
    return value if order == sorted(order) else b.op("Transpose", value, name="turned", perm=order)
