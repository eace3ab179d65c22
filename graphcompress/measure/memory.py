"""How many bytes the values of a graph take on samples, and so how many samples run together."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping

import onnx_ir as ir

from graphcompress.data.samples import Samples
from graphcompress.graph.model import Model

LARGEST_BYTES = 128_000_000
"""One value in a batch takes at most this many bytes: a runtime holds two or three of the largest (scores,
probabilities) at a time."""

MOST = 8
"""At most this many samples run together where memory is no question."""


def bounded(samples: Samples, model: Model) -> Samples:
    """``samples`` that run together only as far as the largest value of the graph stays in bounded memory.

    One sample is the least, however long it is.
    """
    if not len(samples):
        return samples
    sizes = sizes_of(model, samples, 1)
    shapes = {str(value.shape): value for node in model.graph for value in node.outputs}
    largest = max((bytes_of(value, sizes) for value in shapes.values()), default=1)
    fitting = max(1, LARGEST_BYTES // max(largest, 1))
    return samples if fitting >= MOST else dataclasses.replace(samples, together=fitting)


def sizes_of(model: Model, samples: Samples, batch: int) -> dict[str, int]:
    """Symbol of the inputs → its largest size in a batch of ``batch`` samples."""
    found: dict[str, int] = {}
    for value in model.graph.inputs:
        name = value.name or ""
        arrays = [feed[name] for feed in samples.feeds if name in feed]
        if value.shape is None or not arrays or len(value.shape) != arrays[0].ndim + 1:
            continue
        seen = [max(sizes) for sizes in zip(*(array.shape for array in arrays), strict=True)]
        seen.insert(samples.axes.get(name, 0), batch)
        for dim, size in zip(value.shape, seen, strict=True):
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                found[str(dim.value)] = max(size, found.get(str(dim.value), 0))
    return found


def bytes_of(value: ir.Value, sizes: Mapping[str, int]) -> int:
    """Bytes of ``value`` at these sizes; an axis of unknown size counts as the largest of them."""
    itemsize = value.dtype.itemsize if value.dtype is not None else 4
    return math.ceil(itemsize * math.prod(_size(dim, sizes) for dim in value.shape or ()))


def _size(dim: int | ir.SymbolicDim, sizes: Mapping[str, int]) -> int:
    found = dim if isinstance(dim, int) else dim.evaluate(dict(sizes)) if dim.value is not None else None
    return int(found) if isinstance(found, int) else max(sizes.values(), default=1)
