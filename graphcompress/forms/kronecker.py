"""Weights that are Kronecker expressions: expanded when a session is made, or multiplied by factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from graphcompress.analysis.linears import Linear, linears
from graphcompress.forms.family import UNCHANGED, Family, Rewrite, Site, disjoint
from graphcompress.kronecker_forms import KroneckerWeight, read_expression, write_products
from graphcompress.model import Model
from graphcompress.rewrite import Rewriter


@dataclass(frozen=True, eq=False)
class KroneckerSite(Site):
    """A linear and the factors of its weight."""

    linear: Linear
    weight: KroneckerWeight


class Kronecker(Family):
    """A float linear whose weight is a sum of Kronecker products.

    ONNX Runtime computes the constant expression once, when the session is made, and then multiplies with
    the dense weight; multiplying with the factors takes fewer operations in more steps.
    """

    name: ClassVar[str] = "kronecker weight"
    default: ClassVar[str] = UNCHANGED

    @property
    def forms(self) -> Mapping[str, Rewrite]:
        """``products``: multiply with one factor, then with the other, in the order with fewer operations."""
        return {"products": _as_products}

    def sites(self, model: Model) -> list[Site]:
        """Every MatMul with such a weight."""
        found = []
        for linear in linears(model):
            weight = read_expression(linear.weight) if linear.node.op_type == "MatMul" else None
            if weight is not None and linear.input.shape is not None:
                found.append(KroneckerSite((linear.node,), linear, weight))
        return disjoint(found)


def _as_products(rw: Rewriter, site: Site) -> None:
    if isinstance(site, KroneckerSite):
        write_products(rw, site.linear, site.weight)
