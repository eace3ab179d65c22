"""Linears that read the same value, such as those of queries, keys and values: one by one, or as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Linear, linears
from graphcompress.files.parts import SHARED_KEY
from graphcompress.graph.expressions import evaluate, is_constant
from graphcompress.graph.match import dtype_of, fixed_size, operand, producer, rank_of
from graphcompress.graph.model import Model
from graphcompress.rewrite.builder import Builder
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.common.family import CONTRIB, Family, Form, Site, disjoint

_INTEGER = "MatMulIntegerToFloat"


@dataclass(frozen=True, eq=False)
class SharedInput(Site):
    """Linears over one input: the nodes that multiply, what is added to each product, results and widths."""

    products: tuple[ir.Node, ...]
    biases: tuple[ir.Value | None, ...]
    results: tuple[ir.Value, ...]
    widths: tuple[int, ...]


class Packed(Family[SharedInput]):
    """Linears that share their input: separate, or one linear whose output is split."""

    name: ClassVar[str] = "linears of one input"
    default: ClassVar[str] = "packed"

    @property
    def forms(self) -> Mapping[str, Form[SharedInput]]:
        """``packed``: the weights side by side, and a Split behind."""
        return {"packed": _as_packed}

    def sites(self, model: Model) -> list[SharedInput]:
        """Every input that two or more MatMul, or two or more MatMulIntegerToFloat, read."""
        return disjoint((*_float_groups(model), *_integer_groups(model)))


def _float_groups(model: Model) -> Iterator[SharedInput]:
    groups: dict[ir.Value, list[Linear]] = {}
    for item in linears(model):
        # A MatMul of a dequantised weight is an integer product to the runtime; packed in float it is none.
        if item.node.op_type == "MatMul" and producer(item.weight, "DequantizeLinear") is None:
            groups.setdefault(item.input, []).append(item)
    for members in groups.values():
        if len(members) > 1:
            pairs = ((item.node, item.output.producer()) for item in members)
            nodes = dict.fromkeys(node for pair in pairs for node in pair if node is not None)
            yield SharedInput(
                tuple(nodes),
                tuple(item.node for item in members),
                tuple(item.bias for item in members),
                tuple(item.output for item in members),
                tuple(item.out_features for item in members),
            )


def _integer_groups(model: Model) -> Iterator[SharedInput]:
    groups: dict[tuple[ir.Value | None, ...], list[ir.Node]] = {}
    for node in model.graph:
        if (
            node.domain == CONTRIB
            and node.op_type == _INTEGER
            and _width(node)
            and is_constant(node.inputs[1])
        ):
            # Only products of the same activation with the same scale and zero point can be one.
            groups.setdefault((node.inputs[0], node.inputs[2], operand(node, 4)), []).append(node)
    for nodes in groups.values():
        if len(nodes) > 1:
            biases = tuple(operand(node, 6) for node in nodes)
            results = tuple(node.outputs[0] for node in nodes)
            yield SharedInput(tuple(nodes), tuple(nodes), biases, results, tuple(map(_width, nodes)))


def _width(node: ir.Node) -> int:
    """Outputs of a product with a matrix; 0 where that is not known."""
    weight = node.inputs[1]
    return fixed_size(weight, 1) or 0 if rank_of(weight) == 2 else 0


def _as_packed(rw: Rewriter, site: SharedInput) -> None:
    # The packed product stands where the first of them stood, since a reader of any may follow at once.
    first = min(site.products, key=list(rw.model.graph).index)
    place = rw.at(first, f"{site.results[0].name}.packed")
    bias = _joined_bias(place, site)
    if first.op_type == "MatMul":
        value = place.op("MatMul", first.inputs[0], _joined_weight(place, site), name="product")
        value = value if bias is None else place.op("Add", value, bias, name="")
    else:
        value = _packed_integers(place, site, first, bias)
    sizes = place.constant(site.widths, "sizes")
    split = place.node("Split", value, sizes, name="part", outputs=len(site.widths), axis=-1)
    for old, new in zip(site.results, split.outputs, strict=True):
        rw.replace(old, new, take_name=True)


def _packed_integers(place: Builder, site: SharedInput, first: ir.Node, bias: ir.Value | None) -> ir.Value:
    weight = _joined_weight(place, site)
    columns = list(zip(site.products, site.widths, strict=True))
    scales = [_per_column(node.inputs[3], width, np.float32) for node, width in columns]
    dtype = np.int8 if weight.dtype is None else weight.dtype.numpy()
    zeros = [_per_column(operand(node, 5), width, dtype) for node, width in columns]
    scale = place.constant(np.concatenate(scales), "scale")
    zero = place.constant(np.concatenate(zeros), "zero_point")
    operands = (first.inputs[0], weight, first.inputs[2], scale, operand(first, 4), zero)
    packed = place.op(_INTEGER, *operands, *([] if bias is None else [bias]), name="", domain=CONTRIB)
    result = site.results[0]
    packed.type = result.type
    packed.shape = None if result.shape is None else ir.Shape([*result.shape[:-1], sum(site.widths)])
    return packed


def _joined_weight(place: Builder, site: SharedInput) -> ir.Value:
    """Weights [in, out] side by side: stored, or an expression where one of them is an expression.

    Weights that several parts share are put together when a session is made: a copy would be stored beside
    them.
    """
    weights = [weight for node in site.products if (weight := node.inputs[1]) is not None]
    shared = any(SHARED_KEY in weight.metadata_props for weight in weights)
    if not shared and all(weight.const_value is not None for weight in weights):
        return place.constant(np.concatenate([evaluate(weight) for weight in weights], axis=1), "weight")
    return place.op("Concat", *weights, name="weight", axis=1)


def _joined_bias(place: Builder, site: SharedInput) -> ir.Value | None:
    # Where one of them has a bias, the others get zeros.
    stored = next((bias for bias in site.biases if bias is not None), None)
    if stored is None:
        return None
    columns = zip(site.biases, site.widths, strict=True)
    parts = [_per_column(bias, width, dtype_of(stored).numpy()) for bias, width in columns]
    return place.constant(np.concatenate(parts), "bias")


def _per_column(value: ir.Value | None, width: int, dtype: np.dtype | type) -> np.ndarray:
    if value is None:
        return np.zeros(width, dtype)
    return np.broadcast_to(evaluate(value).reshape(-1), (width,)).astype(dtype)
