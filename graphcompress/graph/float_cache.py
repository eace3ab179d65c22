"""Keys and values that a model keeps in 8 bits, for callers that have them in floats.

A model that writes begins with no past and is given its own keys and values back, so that nothing has to be
known of their scales. Whoever compares it with another model gives both the same past, in floats.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import onnx_ir as ir

from graphcompress.files.parts import is_cache, part_in
from graphcompress.files.reading.model_file import read_model
from graphcompress.files.runtime import Feed
from graphcompress.graph.expressions import evaluate, is_constant
from graphcompress.graph.match import is_standard, operand

Run = Callable[[Feed], Mapping[str, np.ndarray]]


@dataclass(frozen=True)
class Grid:
    """The floats that int8 numbers stand for: ``scale`` of each index along ``axis``, or one for all."""

    scale: np.ndarray
    axis: int

    def rounded(self, array: np.ndarray) -> np.ndarray:
        """``array`` in int8, as QuantizeLinear rounds it."""
        steps = np.rint(np.asarray(array, np.float32) / self._along(array.ndim))
        return np.asarray(np.clip(steps, -128, 127), np.int8)

    def floats(self, array: np.ndarray) -> np.ndarray:
        """What the integers of ``array`` stand for, as DequantizeLinear says."""
        return np.asarray(array * self._along(array.ndim), np.float32)

    def _along(self, rank: int) -> np.ndarray:
        if self.scale.size == 1:
            return self.scale.reshape(())
        return self.scale.reshape([-1 if axis == self.axis % rank else 1 for axis in range(rank)])


def cache_grids(graph: ir.Graph) -> dict[str, Grid]:
    """Past inputs and present outputs of ``graph`` in int8 → the floats that they stand for."""
    ends = [*graph.inputs, *(value for value in graph.outputs if is_cache(value.name or ""))]
    found = {value.name or "": _grid(value) for value in ends if value.dtype == ir.DataType.INT8}
    return {name: grid for name, grid in found.items() if grid is not None}


def float_cache(run: Run, grids: Mapping[str, Grid]) -> Run:
    """``run`` for past in floats, which returns present in floats; what is given in int8 stays."""
    return _FloatCache(run, grids) if grids else run


def float_cache_of(run: Run, file: Path) -> Run:
    """:func:`float_cache` of ``run``, which runs the model in ``file``; that may be in another format."""
    if file.suffix != ".onnx":
        return run
    part = part_in(file)
    # Few files have such inputs, and no other has to be read for it.
    if not any(value.dtype == np.int8 for value in (*part.reads("past"), *part.returns("present"))):
        return run
    return float_cache(run, cache_grids(read_model(file)[0].graph))


class _FloatCache:
    """A run with its grids; arrays that were rounded last are kept, since a feed is timed many times."""

    def __init__(self, run: Run, grids: Mapping[str, Grid]) -> None:
        self._run = run
        self._grids = grids
        self._rounded: dict[str, tuple[np.ndarray, np.ndarray]] = {}

    def __call__(self, feed: Feed) -> Mapping[str, np.ndarray]:
        return _Floats(self._run({name: self._fitted(name, feed[name]) for name in feed}), self._grids)

    def _fitted(self, name: str, array: np.ndarray) -> np.ndarray:
        grid = self._grids.get(name)
        if grid is None or array.dtype == np.int8:
            return array
        if name not in self._rounded or self._rounded[name][0] is not array:
            self._rounded[name] = (array, grid.rounded(array))
        return self._rounded[name][1]


class _Floats(Mapping[str, np.ndarray]):
    """Outputs, of which caches become floats when they are looked at."""

    def __init__(self, outputs: Mapping[str, np.ndarray], grids: Mapping[str, Grid]) -> None:
        self._outputs = outputs
        self._grids = grids

    def __getitem__(self, name: str) -> np.ndarray:
        array = self._outputs[name]
        return self._grids[name].floats(array) if name in self._grids else array

    def __iter__(self) -> Iterator[str]:
        return iter(self._outputs)

    def __len__(self) -> int:
        return len(self._outputs)


def _grid(value: ir.Value) -> Grid | None:
    """By a node that rounds ``value``, or reads it as floats, or does so where new tokens are appended."""
    if value.is_graph_input() and all(node.op_type == "Shape" for node in value.consumers()):
        # Nothing in this graph, an excerpt of a model, reads a number.
        return Grid(np.ones((), np.float32), 0)
    handing_on = [node for node in value.consumers() if node.op_type in ("Concat", "Identity")]
    near = [value, *(other for node in handing_on for other in (*node.inputs, *node.outputs))]
    for node in (node for one in filter(None, near) for node in (one.producer(), *one.consumers())):
        if is_standard(node, "QuantizeLinear", "DequantizeLinear"):
            scale = operand(node, 1)
            if scale is not None and is_constant(scale):
                return Grid(evaluate(scale), node.attributes.get_int("axis", 1))
    return None
