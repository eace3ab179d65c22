"""int8 linears: where ONNX Runtime multiplies integers, and what happens to the product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphcompress.graph.expressions import is_constant
from graphcompress.graph.match import is_standard, only_reader
from graphcompress.graph.model import Model
from graphcompress.rewrite.rewriter import Rewriter, put_in_place
from graphcompress.targets.common.family import CONTRIB, Family, Rewrite, Site, disjoint


@dataclass(frozen=True, eq=False)
class IntegerSite(Site):
    """``output = (a - a_zero) · (b - b_zero) · a_scale · b_scale + bias``, ``a`` being activations."""

    a: ir.Value
    b: ir.Value
    a_scale: ir.Value
    b_scale: ir.Value
    a_zero: ir.Value
    b_zero: ir.Value | None
    bias: ir.Value | None


class IntegerLinear(Family):
    """A MatMul between DequantizeLinear pairs, or MatMulInteger with its scales, and the bias behind it.

    ONNX Runtime fuses either into MatMulIntegerToFloat when the session is made, but adds the bias of the
    first in an operator of its own.
    """

    name: ClassVar[str] = "int8 linear"
    default: ClassVar[str] = "integer_to_float"

    @property
    def forms(self) -> Mapping[str, Rewrite]:
        """``integer_to_float``: MatMulIntegerToFloat of com.microsoft, which adds the bias."""
        return {"integer_to_float": _as_integer_to_float}

    def sites(self, model: Model) -> list[Site]:
        """Every linear over quantised activations and weights of two dimensions."""
        return disjoint(site for node in model.graph if (site := _static(node) or _dynamic(node)) is not None)


def _static(node: ir.Node) -> IntegerSite | None:
    if not is_standard(node, "MatMul"):
        return None
    left, right = (value.producer() if value is not None else None for value in node.inputs)
    if left is None or right is None or not all(is_standard(n, "DequantizeLinear") for n in (left, right)):
        return None
    if len(left.inputs) < 3 or is_constant(left.outputs[0]) or not is_constant(right.outputs[0]):
        return None
    if not _is_scalar(left.inputs[1]) or not _by_column(right):
        return None
    inner = (left, node) if only_reader(left.outputs[0]) is node else (node,)
    b_zero = right.inputs[2] if len(right.inputs) > 2 else None
    return _site(
        inner, (left.inputs[0], right.inputs[0]), (left.inputs[1], right.inputs[1]), (left.inputs[2], b_zero)
    )


def _dynamic(node: ir.Node) -> IntegerSite | None:
    """MatMulInteger → Cast → Mul by the product of both scales."""
    if not is_standard(node, "MatMulInteger") or len(node.inputs) < 3:
        return None
    cast = only_reader(node.outputs[0])
    scaled = only_reader(cast.outputs[0]) if cast is not None and is_standard(cast, "Cast") else None
    if cast is None or scaled is None or not is_standard(scaled, "Mul"):
        return None
    scales = next((v.producer() for v in scaled.inputs if v is not None and v.producer() is not cast), None)
    if scales is None or not is_standard(scales, "Mul"):
        return None
    a_scale, b_scale = sorted(scales.inputs, key=is_constant)
    if is_constant(a_scale) or not is_constant(b_scale) or not is_constant(node.inputs[1]):
        return None
    inner = (scales,) if only_reader(scales.outputs[0]) is scaled else ()
    b_zero = node.inputs[3] if len(node.inputs) > 3 else None
    return _site(
        (*inner, node, cast, scaled),
        (node.inputs[0], node.inputs[1]),
        (a_scale, b_scale),
        (node.inputs[2], b_zero),
    )


def _site(
    nodes: tuple[ir.Node, ...],
    factors: tuple[ir.Value | None, ir.Value | None],
    scales: tuple[ir.Value | None, ir.Value | None],
    zeros: tuple[ir.Value | None, ir.Value | None],
) -> IntegerSite | None:
    a, b = factors
    if a is None or b is None or scales[0] is None or scales[1] is None or zeros[0] is None:
        return None
    if b.shape is None or len(b.shape) != 2:
        return None
    bias, add = _bias_behind(nodes[-1].outputs[0], b.shape[1])
    tail = (add,) if add is not None else ()
    return IntegerSite((*nodes, *tail), a, b, scales[0], scales[1], zeros[0], zeros[1], bias)


def _bias_behind(product: ir.Value, width: object) -> tuple[ir.Value | None, ir.Node | None]:
    add = only_reader(product)
    if add is None or not is_standard(add, "Add"):
        return None, None
    for value in add.inputs:
        if value is not None and value is not product and is_constant(value) and _vector_of(value, width):
            return value, add
    return None, None


def _vector_of(value: ir.Value, width: object) -> bool:
    return value.shape is not None and len(value.shape) == 1 and value.shape[0] == width


def _by_column(dequantize: ir.Node) -> bool:
    """Whether the weight [in, out] has one scale, or one per output."""
    weight, scale = dequantize.inputs[:2]
    if weight is None or weight.shape is None or scale is None or scale.shape is None:
        return False
    if _is_scalar(scale):
        return True
    axis = dequantize.attributes.get_int("axis", 1)
    blocked = dequantize.attributes.get_int("block_size", 0)
    return len(weight.shape) == 2 and len(scale.shape) == 1 and axis in (1, -1) and not blocked


def _is_scalar(value: ir.Value | None) -> bool:
    return value is not None and value.shape is not None and all(dim == 1 for dim in value.shape)


def _as_integer_to_float(rw: Rewriter, site: Site) -> None:
    if not isinstance(site, IntegerSite):
        return
    last = site.nodes[-1]
    operands = [site.a, site.b, site.a_scale, site.b_scale, site.a_zero, site.b_zero, site.bias]
    while operands[-1] is None:
        operands.pop()
    value = rw.node("MatMulIntegerToFloat", *operands, before=last, name=site.name, domain=CONTRIB)
    put_in_place(rw, last.outputs[0], value)
