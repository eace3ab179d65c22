"""How many bytes the values of a graph take on samples, and so how many samples run together."""

from __future__ import annotations

import dataclasses
import itertools
import math
from collections.abc import Mapping

import onnx_ir as ir

from graphcompress.data.samples import Samples
from graphcompress.graph.model import Model

LARGEST_BYTES = 128_000_000
"""One value in a batch takes at most this many bytes: a runtime holds two or three of the largest (scores,
probabilities) at a time."""

MUCH_BYTES = 1_000_000_000
"""A user is told of a sample with a larger value before the work."""

SHORTEST_WINDOW = 128
"""Windows of a sample have no fewer tokens than half of this: a shorter one says little about a sample."""

MOST = 8
"""At most this many samples run together where memory is no question."""


def bounded(samples: Samples, model: Model) -> Samples:
    """``samples`` that run together only as far as the largest value of the graph stays in bounded memory.

    One sample is the least, however long it is.
    """
    if not len(samples):
        return samples
    largest = _largest_bytes(model, sizes_of(model, samples, 1))
    fitting = max(1, LARGEST_BYTES // max(largest, 1))
    return samples if fitting >= MOST else dataclasses.replace(samples, together=fitting)


def for_statistics(samples: Samples, model: Model) -> Samples:
    """``samples`` for statistics of values: cut into windows of tokens, so that memory is bounded.

    A window of a long sample is a shorter sample, which serves statistics as well. Samples stay whole where
    the model fixes the length, or where inputs do not share one variable length.
    """
    if not len(samples):
        return samples
    return bounded(_in_windows(samples, model), model)


def longest_needs(samples: Samples, model: Model) -> str:
    """A sentence about a longest sample that takes much memory in any run; nothing where none does."""
    largest = _largest_bytes(model, sizes_of(model, samples, 1)) if len(samples) else 0
    if largest <= MUCH_BYTES:
        return ""
    return (
        f"the longest sample makes a value of {largest / 1e9:.1f} GB in one run of the model, of which a "
        "runtime holds two or three; shorter samples need less"
    )


def _in_windows(samples: Samples, model: Model) -> Samples:
    length = _length_name(samples, model)
    sizes = sizes_of(model, samples, 1)
    window = longest = sizes.get(length, 0)
    while window > SHORTEST_WINDOW and _largest_bytes(model, {**sizes, length: window}) > LARGEST_BYTES:
        window //= 2
    if window == longest:
        return samples
    feeds = [
        {name: array[start : start + window] if array.ndim else array for name, array in feed.items()}
        for feed in samples.feeds
        for start in range(0, max(len(array) for array in feed.values() if array.ndim), window)
    ]
    padded = [all(array.any() for name, array in feed.items() if "mask" in name) for feed in feeds]
    return dataclasses.replace(samples, feeds=list(itertools.compress(feeds, padded)), columns={}, per_row=1)


def _length_name(samples: Samples, model: Model) -> str:
    """Name of the one size that all inputs have on their first axis beside the batch; else an empty text."""
    names = set()
    for value in model.graph.inputs:
        name = value.name or ""
        arrays = [feed[name] for feed in samples.feeds if name in feed]
        if not arrays or not arrays[0].ndim:
            continue
        if value.shape is None or len(value.shape) != arrays[0].ndim + 1:
            return ""
        dims = [dim for axis, dim in enumerate(value.shape) if axis != samples.axes.get(name, 0)]
        if any(not isinstance(dim, int) for dim in dims[1:]):
            return ""
        names.add(str(dims[0].value) if isinstance(dims[0], ir.SymbolicDim) else "")
    return names.pop() if len(names) == 1 else ""


def _largest_bytes(model: Model, sizes: Mapping[str, int]) -> int:
    """Bytes of the largest value of the graph at these sizes."""
    shapes = {str(value.shape): value for node in model.graph for value in node.outputs}
    return max((bytes_of(value, sizes) for value in shapes.values()), default=1)


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
