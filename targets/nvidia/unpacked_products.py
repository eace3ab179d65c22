"""Packed int8 products (queries, keys and values in one) as one product for each of their parts.

TensorRT divides such a product by itself, and then multiplies dequantised weights: no int8 is left of it.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.graph.match import integers_of, is_standard, only_reader, operand
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
            rw.supersede(part.value, _part(rw, packed, part, number))
    rw.clean()
    return [packed.product.name or packed.product.outputs[0].name or "MatMul" for packed in found]


def _packed(node: ir.Node) -> _PackedProduct | None:
    if not is_standard(node, "MatMul") or not is_integer_product(node) or node.inputs[1] is None:
        return None
    weight = node.inputs[1].producer()
    y, bias = _biased(node.outputs[0])
    if weight is None or not _has_columns(weight) or y.shape is None or not isinstance(y.shape[-1], int):
        return None
    rank, width = len(y.shape), int(y.shape[-1])
    parts = _parts(y, rank - 1, width)
    if parts:
        return _PackedProduct(node, weight, bias, (), (width,), parts, reshaped=False)
    reshape = only_reader(y)
    if reshape is None or not is_standard(reshape, "Reshape"):
        return None
    lead, features = _divided(reshape, rank - 1)
    if math.prod(features) != width or len(features) < 2:
        return None
    parts = _parts(reshape.outputs[0], rank - 1, features[0])
    return _PackedProduct(node, weight, bias, lead, features, parts, reshaped=True) if parts else None


def _has_columns(weight: ir.Node) -> bool:
    """Whether a stored matrix is dequantised by one scale, or by one for every column."""
    values, scale = (_stored(value) for value in weight.inputs[:2])
    if values is None or scale is None or values.ndim != 2:
        return False
    return scale.size == 1 or (
        weight.attributes.get_int("axis", 1) % 2 == 1 and scale.size == values.shape[1]
    )


def _stored(value: ir.Value | None) -> np.ndarray | None:
    return value.const_value.numpy() if value is not None and value.const_value is not None else None


def _biased(product: ir.Value) -> tuple[ir.Value, ir.Value | None]:
    """What is read of a product: itself, or its sum with a stored bias of one number per feature."""
    add = only_reader(product)
    if add is None or not is_standard(add, "Add"):
        return product, None
    bias = next((it for it in add.inputs if it is not None and it is not product), None)
    stored = bias.const_value if bias is not None else None
    if (
        stored is None
        or len(stored.shape) != 1
        or product.shape is None
        or stored.shape[0] != product.shape[-1]
    ):
        return product, None
    return add.outputs[0], bias


def _divided(reshape: ir.Node, rank: int) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """The first ``rank`` sizes that a Reshape is given, and the others as numbers; none where not known."""
    wanted, shape = integers_of(operand(reshape, 1)), reshape.outputs[0].shape
    if (
        wanted is None
        or shape is None
        or len(wanted) != len(shape)
        or reshape.attributes.get_int("allowzero", 0) != 0
    ):
        return (), ()
    features = tuple(int(dim) for dim in shape[rank:] if isinstance(dim, int))
    return (tuple(wanted[:rank]), features) if len(features) == len(shape) - rank else ((), ())


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
    axes = (axis, axis - _rank(node))
    if is_standard(node, "Split") and node.attributes.get_int("axis", 0) in axes:
        ends = np.cumsum(sizes := _split_sizes(node, size)).tolist()
        yield from (_Part(v, end - n, end) for v, n, end in zip(node.outputs, sizes, ends, strict=False))
    elif is_standard(node, "Gather") and node.attributes.get_int("axis", 0) in axes:
        index = _stored(node.inputs[1])
        if index is not None and index.ndim == 0:
            start = int(index) % size
            yield _Part(node.outputs[0], start, start + 1, dropped=True)
    elif is_standard(node, "Slice"):
        starts, ends, along, steps = (integers_of(operand(node, index)) for index in (1, 2, 3, 4))
        if starts and ends and along in [[it] for it in axes] and steps in (None, [1]):
            start, stop, _ = slice(starts[0], ends[0]).indices(size)
            yield from [_Part(node.outputs[0], start, stop)] if stop > start else []


def _split_sizes(split: ir.Node, size: int) -> list[int]:
    """Sizes of the outputs; none where they are computed, or not the same without being given."""
    if len(split.inputs) > 1 and split.inputs[1] is not None:
        return integers_of(operand(split, 1)) or []
    count = len(split.outputs)
    return [size // count] * count if size % count == 0 else []


def _rank(node: ir.Node) -> int:
    return len(node.inputs[0].shape) if node.inputs[0] is not None and node.inputs[0].shape is not None else 0


def _part(rw: Rewriter, packed: _PackedProduct, part: _Part, number: int) -> ir.Value:
    """The product for one part, behind its bias and in its shape."""
    product, name = packed.product, f"{packed.product.outputs[0].name}.part{number}"
    inner = math.prod(packed.features[1:])
    columns = slice(part.start * inner, part.stop * inner)
    sizes = list(product.outputs[0].shape or ())[:-1]
    weight = _columns(rw, packed, columns, name)
    value = rw.node("MatMul", product.inputs[0], weight, before=product, name=name)
    _typed(value, product.outputs[0], [*sizes, columns.stop - columns.start])
    bias = _stored(packed.bias)
    if bias is not None:
        own = rw.constant(bias[columns], f"{name}.bias")
        value = _typed(
            rw.node("Add", value, own, before=product, name=f"{name}.sum"), value, list(value.shape or ())
        )
    if not packed.reshaped:
        return value
    features = [*([] if part.dropped else [part.stop - part.start]), *packed.features[1:]]
    target = rw.constant(np.array([*packed.lead, *features], np.int64), f"{name}.shape")
    shaped = rw.node("Reshape", value, target, before=product, name=f"{name}.view")
    return _typed(shaped, value, [*sizes, *features])


def _columns(rw: Rewriter, packed: _PackedProduct, columns: slice, name: str) -> ir.Value:
    """These columns of the weight, dequantised."""
    stored = zip(("values", "scale", "zero_point"), map(_stored, packed.weight.inputs), strict=False)
    made = [
        None if it is None else rw.constant(it[..., columns] if it.size > 1 else it, f"{name}.{word}")
        for word, it in stored
    ]
    value = rw.node("DequantizeLinear", *made, before=packed.product, name=f"{name}.weight", axis=1)
    whole = packed.weight.outputs[0]
    return _typed(value, whole, [*list(whole.shape or ())[:1], columns.stop - columns.start])


def _typed(value: ir.Value, like: ir.Value, shape: Sequence[int | ir.SymbolicDim]) -> ir.Value:
    value.type, value.shape = like.type, ir.Shape(shape)
    return value
