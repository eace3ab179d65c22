"""Linears that read the same value, such as those of queries, keys and values: one by one, or as one."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import linears
from graphcompress.graph.expressions import evaluate, is_constant
from graphcompress.graph.model import Model
from graphcompress.rewrite.rewriter import Rewriter, put_in_place
from graphcompress.targets.common.family import CONTRIB, Family, Rewrite, Site, disjoint

_INTEGER = "MatMulIntegerToFloat"


@dataclass(frozen=True, eq=False)
class SharedInput(Site):
    """Linears over one input: the nodes that multiply, what is added to each product, results and widths."""

    products: tuple[ir.Node, ...]
    biases: tuple[ir.Value | None, ...]
    results: tuple[ir.Value, ...]
    widths: tuple[int, ...]


class Packed(Family):
    """Linears that share their input: separate, or one linear whose output is split."""

    name: ClassVar[str] = "linears of one input"
    default: ClassVar[str] = "packed"

    @property
    def forms(self) -> Mapping[str, Rewrite]:
        """``packed``: the weights side by side, and a Split behind."""
        return {"packed": _as_packed}

    def sites(self, model: Model) -> list[Site]:
        """Every input that two or more MatMul, or two or more MatMulIntegerToFloat, read."""
        return disjoint((*_float_groups(model), *_integer_groups(model)))


def _float_groups(model: Model) -> Iterator[Site]:
    groups: dict[ir.Value, list[tuple[ir.Node, ir.Value | None, ir.Value, int]]] = {}
    for item in linears(model):
        quantised = item.weight.producer()
        if item.node.op_type == "MatMul" and (quantised is None or quantised.op_type != "DequantizeLinear"):
            groups.setdefault(item.input, []).append((item.node, item.bias, item.output, item.out_features))
    for members in groups.values():
        if len(members) > 1:
            products, biases, results, widths = zip(*members, strict=True)
            ends = tuple(result.producer() for result in results)
            nodes = dict.fromkeys(node for pair in zip(products, ends, strict=True) for node in pair if node)
            yield SharedInput(tuple(nodes), products, biases, results, widths)


def _integer_groups(model: Model) -> Iterator[Site]:
    groups: dict[tuple[ir.Value | None, ...], list[ir.Node]] = {}
    for node in model.graph:
        if (
            node.domain == CONTRIB
            and node.op_type == _INTEGER
            and _width(node)
            and is_constant(node.inputs[1])
        ):
            groups.setdefault((node.inputs[0], node.inputs[2], _operand(node, 4)), []).append(node)
    for nodes in groups.values():
        if len(nodes) > 1:
            biases = tuple(_operand(node, 6) for node in nodes)
            results = tuple(node.outputs[0] for node in nodes)
            yield SharedInput(tuple(nodes), tuple(nodes), biases, results, tuple(map(_width, nodes)))


def _width(node: ir.Node) -> int:
    shape = node.inputs[1].shape if node.inputs[1] is not None else None
    return shape[1] if shape is not None and len(shape) == 2 and isinstance(shape[1], int) else 0


def _operand(node: ir.Node, index: int) -> ir.Value | None:
    return node.inputs[index] if index < len(node.inputs) else None


def _as_packed(rw: Rewriter, site: Site) -> None:
    if not isinstance(site, SharedInput):
        return
    first = min(site.products, key=list(rw.model.graph).index)
    name = f"{site.results[0].name}.packed"
    bias = _joined_bias(rw, site, f"{name}.bias")
    if first.op_type == "MatMul":
        weight = _joined(rw, [node.inputs[1] for node in site.products], f"{name}.weight", first)
        value = rw.node("MatMul", first.inputs[0], weight, before=first, name=f"{name}.product")
        value = value if bias is None else rw.node("Add", value, bias, before=first, name=name)
    else:
        value = _packed_integers(rw, site, first, bias, name)
    sizes = rw.constant(np.array(site.widths, np.int64), f"{name}.sizes")
    part = rw.node(
        "Split", value, sizes, before=first, name=f"{name}.part", outputs=len(site.widths), axis=-1
    )
    split = part.producer()
    for old, new in zip(site.results, split.outputs if split is not None else (), strict=True):
        put_in_place(rw, old, new)


def _packed_integers(
    rw: Rewriter, site: SharedInput, first: ir.Node, bias: ir.Value | None, name: str
) -> ir.Value:
    weight = _joined(rw, [node.inputs[1] for node in site.products], f"{name}.weight", first)
    columns = list(zip(site.products, site.widths, strict=True))
    scales = [_per_column(node.inputs[3], width, np.float32) for node, width in columns]
    dtype = np.int8 if weight.dtype is None else weight.dtype.numpy()
    zeros = [_per_column(_operand(node, 5), width, dtype) for node, width in columns]
    operands: tuple[ir.Value | None, ...] = (
        first.inputs[0],
        weight,
        first.inputs[2],
        rw.constant(np.concatenate(scales), f"{name}.scale"),
        _operand(first, 4),
        rw.constant(np.concatenate(zeros), f"{name}.zero_point"),
        bias,
    )
    operands = operands if bias is not None else operands[:-1]
    packed = rw.node(_INTEGER, *operands, before=first, name=name, domain=CONTRIB)
    result = site.results[0]
    packed.type = result.type
    packed.shape = None if result.shape is None else ir.Shape([*result.shape[:-1], sum(site.widths)])
    return packed


def _joined(rw: Rewriter, weights: Sequence[ir.Value | None], name: str, before: ir.Node) -> ir.Value:
    """Weights [in, out] side by side: stored, or an expression where one of them is an expression."""
    present = [weight for weight in weights if weight is not None]
    if all(weight.const_value is not None for weight in present):
        return rw.constant(np.concatenate([evaluate(weight) for weight in present], axis=1), name)
    return rw.node("Concat", *present, before=before, name=name, axis=1)


def _joined_bias(rw: Rewriter, site: SharedInput, name: str) -> ir.Value | None:
    if all(bias is None for bias in site.biases):
        return None
    dtype = next(bias.dtype for bias in site.biases if bias is not None)
    parts = [
        _per_column(bias, width, np.float32 if dtype is None else dtype.numpy())
        for bias, width in zip(site.biases, site.widths, strict=True)
    ]
    return rw.constant(np.concatenate(parts), name)


def _per_column(value: ir.Value | None, width: int, dtype: np.dtype | type) -> np.ndarray:
    if value is None:
        return np.zeros(width, dtype)
    return np.broadcast_to(evaluate(value).reshape(-1), (width,)).astype(dtype)
