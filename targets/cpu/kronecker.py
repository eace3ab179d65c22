"""Weights that are Kronecker expressions: expanded when a session is made, or multiplied by factors."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

from graphcompress.analysis.linears import Embedding, Linear, embeddings, linears
from graphcompress.graph.model import Model
from graphcompress.numerics.kronecker import Order
from graphcompress.rewrite.kronecker import KroneckerWeight, read_expression, write_products
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.common.family import UNCHANGED, Family, Form, Site, disjoint
from graphcompress.targets.common.kronecker_factors import look_up_factors


@dataclass(frozen=True, eq=False)
class FactoredSite(Site):
    """A place that reads a sum of Kronecker products."""

    weight: KroneckerWeight

    def signature(self) -> str:
        """As of every site, and the sizes of the factors: they decide what multiplying by them costs."""
        return f"{super().signature()} {self.weight.split}r{self.weight.rank}"


@dataclass(frozen=True, eq=False)
class KroneckerSite(FactoredSite):
    """A linear and the factors of its weight."""

    linear: Linear


@dataclass(frozen=True, eq=False)
class TableSite(FactoredSite):
    """An embedding and the factors of its table."""

    embedding: Embedding


class Kronecker(Family[KroneckerSite]):
    """A float linear whose weight is a sum of Kronecker products.

    ONNX Runtime computes the constant expression once, when the session is made, and then multiplies with
    the dense weight; multiplying with the factors takes fewer operations in more steps.
    """

    name: ClassVar[str] = "kronecker weight"
    default: ClassVar[str] = UNCHANGED

    @property
    def forms(self) -> Mapping[str, Form[KroneckerSite]]:
        """``a_first``, ``b_first``: multiply with one factor, then with the other."""
        return {order: partial(_as_products, order=order) for order in _ORDERS}

    def sites(self, model: Model) -> list[KroneckerSite]:
        """Every MatMul with such a weight."""
        found = []
        for linear in linears(model):
            weight = read_expression(linear.weight) if linear.node.op_type == "MatMul" else None
            if weight is not None and linear.input.shape is not None:
                found.append(KroneckerSite((linear.node,), weight, linear))
        return disjoint(found)


class KroneckerTable(Family[TableSite]):
    """An embedding whose table is a sum of Kronecker products.

    Expanded when the session is made it takes the memory of the dense table, and a row is copied; looked up
    in the factors, a row is computed from theirs.
    """

    name: ClassVar[str] = "kronecker table"
    default: ClassVar[str] = UNCHANGED

    @property
    def forms(self) -> Mapping[str, Form[TableSite]]:
        """``looked_up``: rows of the factors, multiplied."""
        return {"looked_up": _as_lookup}

    def sites(self, model: Model) -> list[TableSite]:
        """Every Gather from such a table."""
        found = []
        for embedding in embeddings(model):
            weight = read_expression(embedding.weight)
            if weight is not None and embedding.indices.shape is not None:
                found.append(TableSite((embedding.node,), weight, embedding))
        return disjoint(found)


_ORDERS: tuple[Order, ...] = ("a_first", "b_first")


def _as_products(rw: Rewriter, site: KroneckerSite, order: Order) -> None:
    write_products(rw, site.linear, site.weight, order)


def _as_lookup(rw: Rewriter, site: TableSite) -> None:
    look_up_factors(rw, site.embedding)
