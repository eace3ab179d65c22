"""int8 linears: where ONNX Runtime multiplies integers, and what happens to the product."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from graphcompress.analysis.integer import IntegerProduct, integer_products
from graphcompress.graph.model import Model
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.common.family import CONTRIB, Family, Form, Site, disjoint


@dataclass(frozen=True, eq=False)
class IntegerSite(Site):
    """An integer product."""

    product: IntegerProduct


class IntegerLinear(Family[IntegerSite]):
    """A MatMul between DequantizeLinear pairs, or MatMulInteger with its scales, and the bias behind it.

    ONNX Runtime fuses either into MatMulIntegerToFloat when the session is made, but adds the bias of the
    first in an operator of its own.
    """

    name: ClassVar[str] = "int8 linear"
    default: ClassVar[str] = "integer_to_float"

    @property
    def forms(self) -> Mapping[str, Form[IntegerSite]]:
        """``integer_to_float``: MatMulIntegerToFloat of com.microsoft, which adds the bias."""
        return {"integer_to_float": _as_integer_to_float}

    def sites(self, model: Model) -> list[IntegerSite]:
        """Every linear over quantised activations and weights of two dimensions."""
        return disjoint(IntegerSite(product.nodes, product) for product in integer_products(model))


def _as_integer_to_float(rw: Rewriter, site: IntegerSite) -> None:
    p = site.product
    operands = [p.a, p.b, p.a_scale, p.b_scale, p.a_zero, p.b_zero, p.bias]
    # Optional inputs at the end are left out, since no input follows for which they would hold a place.
    while operands[-1] is None:
        operands.pop()
    value = site.place(rw).op("MatMulIntegerToFloat", *operands, name="", domain=CONTRIB)
    rw.replace(site.output, value, take_name=True)
