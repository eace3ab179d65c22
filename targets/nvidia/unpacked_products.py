"""Packed int8 products (queries, keys and values in one) as one product for each of their parts.

TensorRT divides such a product by itself, and then multiplies dequantised weights: no int8 is left of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.graph.match import (
    array_of,
    fixed_size,
    integers_of,
    is_standard,
    only_reader,
    operand,
    operand_beside,
    producer,
    rank_of,
    tensor_of,
)
from graphcompress.rewrite.builder import Builder
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.nvidia.refusals import is_integer_product


@dataclass(frozen=True)
class _Part:
    """A value with the entries from ``start`` to ``stop`` along an axis; ``dropped``: without that axis."""

    value: ir.Value
    start: int
    stop: int
    dropped: bool = False


@dataclass(frozen=True, eq=False)
class _PackedProduct:
    """An int8 product whose features are cut into parts, and by nothing else read.

    Attributes:
        product: MatMul of an activation and a dequantised weight.
        weight: DequantizeLinear of a stored weight [in, out].
        bias: [out], or None.
        lead: sizes in front of the features, as a Reshape is given them.
        features: sizes that the features are cut in; parts lie along the first.
        parts: what is cut out.
        reshaped: whether the features are given another shape before they are cut.
    """

    product: ir.Node
    weight: ir.Node
    bias: ir.Value | None
    lead: tuple[int, ...]
    features: tuple[int, ...]
    parts: tuple[_Part, ...]
    reshaped: bool


def unpack_products(rw: Rewriter) -> list[str]:
    """Write every packed int8 product as one for each part; names of those that were.

    Left alone: products whose parts do not lie one behind the other in their features, or that something else
    reads, too.
    """
    found = [packed for node in rw.model.graph if (packed := _packed(node)) is not None]
    for packed in found:
        for number, part in enumerate(packed.parts):
            rw.replace(part.value, _part(rw, packed, part, number), take_name=True)
    rw.clean()
    return [packed.product.name or packed.product.outputs[0].name or "MatMul" for packed in found]


def _packed(node: ir.Node) -> _PackedProduct | None:
    if not is_standard(node, "MatMul") or not is_integer_product(node):
        return None
    weight = producer(node.inputs[1])
    y, bias = _biased(node.outputs[0])
    rank, width = rank_of(y), fixed_size(y, -1)
    if weight is None or not _has_columns(weight) or rank is None or width is None:
        return None
    parts = _parts(y, rank - 1, width)
    if parts:
        return _PackedProduct(node, weight, bias, (), (width,), parts, reshaped=False)
    reshape = only_reader(y, "Reshape")
    if reshape is None:
        return None
    lead, features = _divided(reshape, rank - 1)
    if math.prod(features) != width or len(features) < 2:
        return None
    parts = _parts(reshape.outputs[0], rank - 1, features[0])
    return _PackedProduct(node, weight, bias, lead, features, parts, reshaped=True) if parts else None


def _has_columns(weight: ir.Node) -> bool:
    """Whether a stored matrix is dequantised by one scale, or by one for every column."""
    values, scale = (array_of(value) for value in weight.inputs[:2])
    if values is None or scale is None or values.ndim != 2:
        return False
    return scale.size == 1 or (
        weight.attributes.get_int("axis", 1) % 2 == 1 and scale.size == values.shape[1]
    )


def _biased(product: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """What is read of a product: itself, or its sum with a stored bias of one number per feature."""
    add = only_reader(product, "Add")
    bias = operand_beside(add, product)
    per_feature = rank_of(bias) == 1 and fixed_size(bias, 0) == fixed_size(product, -1)
    if add is None or tensor_of(bias) is None or not per_feature:
        return product, None
    return add.outputs[0], bias


def _divided(reshape: ir.Node, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The first ``rank`` sizes that a Reshape is given, and the others as numbers; none where not known."""
    wanted, shape = integers_of(operand(reshape, 1)), list(reshape.outputs[0].shape or ())
    features = tuple(size for size in shape[rank:] if isinstance(size, int))
    known = wanted is not None and len(wanted) == len(shape) == rank + len(features)
    if wanted is None or not known or reshape.attributes.get_int("allowzero", 0) != 0:
        return (), ()
    return tuple(wanted[:rank]), features


def _parts(value: ir.Value, axis: int, size: int) -> tuple[_Part, ...]:
    """The parts that ``value`` is cut into along ``axis``; none where something reads it as a whole."""
    found: list[_Part] = []
    for use in value.uses():
        cut = list(_cut(use.node, axis, size)) if use.idx == 0 else []
        if not cut:
            return ()
        found += cut
    return () if value.is_graph_output() or len(found) < 2 else tuple(found)


def _cut(node: ir.Node, axis: int, size: int) -> Iterator[_Part]:
    """What ``node`` cuts out of [.., size, ..]; nothing where it does something else."""
    axes = (axis, axis - (rank_of(operand(node, 0)) or 0))
    if is_standard(node, "Split") and node.attributes.get_int("axis", 0) in axes:
        ends = np.cumsum(sizes := _split_sizes(node, size)).tolist()
        yield from (_Part(v, end - n, end) for v, n, end in zip(node.outputs, sizes, ends, strict=False))
    elif is_standard(node, "Gather") and node.attributes.get_int("axis", 0) in axes:
        index = array_of(node.inputs[1])
        if index is not None and index.ndim == 0:
            start = int(index) % size
            yield _Part(node.outputs[0], start, start + 1, dropped=True)
    elif is_standard(node, "Slice"):
        starts, ends, along, steps = (integers_of(operand(node, index)) for index in (1, 2, 3, 4))
        if starts and ends and along in [[each] for each in axes] and steps in (None, [1]):
            start, stop, _ = slice(starts[0], ends[0]).indices(size)
            yield from [_Part(node.outputs[0], start, stop)] if stop > start else []


def _split_sizes(split: ir.Node, size: int) -> list[int]:
    """Sizes of the outputs; none where they are computed, or not the same without being given."""
    if operand(split, 1) is not None:
        return integers_of(operand(split, 1)) or []
    count = len(split.outputs)
    return [size // count] * count if size % count == 0 else []


def _part(rw: Rewriter, packed: _PackedProduct, part: _Part, number: int) -> ir.Value:
    """The product for one part, behind its bias and in its shape."""
    product = packed.product.outputs[0]
    place = rw.at(packed.product, f"{product.name}.part{number}")
    inner = math.prod(packed.features[1:])
    columns = slice(part.start * inner, part.stop * inner)
    sizes = list(product.shape or ())[:-1]
    weight = _columns(place, packed, columns)
    value = place.op("MatMul", packed.product.inputs[0], weight, name="")
    _typed(value, product, [*sizes, columns.stop - columns.start])
    bias = array_of(packed.bias)
    if bias is not None:
        summed = place.op("Add", value, place.constant(bias[columns], "bias"), name="sum")
        value = _typed(summed, value, list(value.shape or ()))
    if not packed.reshaped:
        return value
    features = [*([] if part.dropped else [part.stop - part.start]), *packed.features[1:]]
    shape = place.constant([*packed.lead, *features], "shape")
    return _typed(place.op("Reshape", value, shape, name="view"), value, [*sizes, *features])


def _columns(place: Builder, packed: _PackedProduct, columns: slice) -> ir.Value:
    """These columns of the weight, dequantised."""
    stored = zip(("values", "scale", "zero_point"), map(array_of, packed.weight.inputs), strict=False)
    made = [
        # One scale of all columns is that of every part.
        None if array is None else place.constant(array[..., columns] if array.size > 1 else array, word)
        for word, array in stored
    ]
    whole = packed.weight.outputs[0]
    value = place.op("DequantizeLinear", *made, name="weight", axis=1)
    return _typed(value, whole, [*list(whole.shape or ())[:1], columns.stop - columns.start])


def _typed(value: ir.Value, like: ir.Value, shape: Sequence[int | ir.SymbolicDim]) -> ir.Value:
    value.type, value.shape = like.type, ir.Shape(shape)
    return value
