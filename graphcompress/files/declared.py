"""What a file says about the sizes of its inputs and outputs: kept for its callers, believed by nobody."""

from __future__ import annotations

import contextlib
import functools
import re
from collections.abc import Iterator, Mapping

import onnx_ir as ir

_ARITHMETIC = re.compile(r"[\w+*(), -]{1,200}", re.ASCII)
"""Characters of the names of sizes that exporters write: ``batch``, ``past + sequence``, ``2*s0``."""

_DEEPEST = 16
"""Brackets in such a name; the parser descends into each."""

Dim = int | ir.SymbolicDim


@functools.lru_cache(maxsize=1024)  # every clone of a model asks about the same names, and the parser is slow
def is_legible(name: str) -> bool:
    """Whether inference reads ``name`` as what its author meant: a name, or arithmetic with names."""
    if not _ARITHMETIC.fullmatch(name) or "**" in name or name.count("(") > _DEEPEST:
        return False
    try:
        return bool(ir.SymbolicDim(name).free_symbols()) and isinstance(
            ir.SymbolicDim(name).simplify(), ir.SymbolicDim
        )
    except ValueError:  # no expression
        return False


class Declared:
    """Shapes of inputs and outputs as the file has them.

    A name of a size is any text to ONNX, while symbolic inference reads it as arithmetic: in memory the size
    called ``batch size`` has another name. A negative number, by which older exporters mean a variable size,
    is an unknown one. What a file says about the outputs is a promise to the caller and implies nothing: in
    memory they have the shapes that are inferred. :meth:`shown` brings all of it back.
    """

    def __init__(self, model: ir.Model) -> None:
        """Take down the shapes of ``model`` and give its sizes names that inference can read."""
        self._shapes = {value.name: _copy(value.shape) for value in _interface(model.graph)}
        self._taken = {name for name in _names(model) if is_legible(name)}
        self._legible: dict[str, str] = {}
        for value in _values(model):
            if value.shape is not None:
                value.shape = ir.Shape([self._dim(dim) for dim in value.shape])

    def _dim(self, dim: Dim) -> Dim:
        if isinstance(dim, int):
            return dim if dim >= 0 else ir.SymbolicDim(None)
        return dim if dim.value is None else ir.SymbolicDim(self._name(dim.value))

    def _name(self, name: str) -> str:
        if is_legible(name):
            return name
        if name not in self._legible:
            base = "size_" + re.sub(r"\W+", "_", name, flags=re.ASCII).strip("_")
            fresh = base
            while fresh in self._taken:
                fresh += "_"
            self._taken.add(fresh)
            self._legible[name] = fresh
        return self._legible[name]

    def copy(self) -> Declared:
        """The same for a clone of the model."""
        twin = object.__new__(Declared)
        twin._shapes, twin._taken, twin._legible = dict(self._shapes), self._taken, self._legible
        return twin

    def said(self, value: ir.Value) -> ir.Shape | None:
        """The shape of an input or output as the file has it; None where it has none."""
        return self._shapes.get(value.name)

    def of(self, value: ir.Value) -> ir.Shape | None:
        """The shape of an input or output: as the file has it, or as it was inferred where it has none."""
        declared = self.said(value)
        return value.shape if declared is None else declared

    def resize(self, value: ir.Value, sizes: Mapping[int, int]) -> None:
        """An input or output has these numbers (axis → size) from now on, since what it holds was cut."""
        said = self.said(value)
        if said is not None:
            self._shapes[value.name] = ir.Shape([sizes.get(axis, dim) for axis, dim in enumerate(said)])

    def fix(self, graph: ir.Graph, sizes: Mapping[str, int]) -> None:
        """Give variable sizes (by their names in memory) these numbers.

        The shape of an output that is still variable then is what inference finds.
        """
        outputs = {value.name for value in graph.outputs}
        for name, shape in self._shapes.items():
            if shape is None:
                continue
            fixed = ir.Shape([self._number(dim, sizes) for dim in shape])
            self._shapes[name] = None if name in outputs and not fixed.is_static() else fixed
        for value in graph.inputs:
            if value.shape is not None:
                value.shape = ir.Shape([self._number(dim, sizes) for dim in value.shape])

    def _number(self, dim: Dim, sizes: Mapping[str, int]) -> Dim:
        if isinstance(dim, int) or dim.value is None:
            return dim
        return sizes.get(self._legible.get(dim.value, dim.value), dim)

    @contextlib.contextmanager
    def shown(self, graph: ir.Graph) -> Iterator[None]:
        """Inputs and outputs have the shapes of the file, for as long as it is written."""
        inferred = [(value, value.shape) for value in _interface(graph)]
        try:
            for value, _ in inferred:
                value.shape = _copy(self.of(value))
            yield
        finally:
            for value, shape in inferred:
                value.shape = shape


def _copy(shape: ir.Shape | None) -> ir.Shape | None:
    return None if shape is None else shape.copy()


def _interface(graph: ir.Graph) -> list[ir.Value]:
    return [*graph.inputs, *graph.outputs]


def _values(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.inputs
        for node in graph:
            yield from node.outputs


def _names(model: ir.Model) -> set[str]:
    """Names of the sizes in ``model``."""
    shapes = [value.shape for value in _values(model) if value.shape is not None]
    return {dim.value for shape in shapes for dim in shape if isinstance(dim, ir.SymbolicDim) and dim.value}
