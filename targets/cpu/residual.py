"""Residual addition and LayerNormalization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import onnx_ir as ir

from graphcompress.graph.expressions import is_constant
from graphcompress.graph.match import is_standard, operand, producer
from graphcompress.graph.model import Model
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.common.family import Family, Form, Site, disjoint


class Residual(Family[Site]):
    """``LayerNormalization(a + b)``.

    ONNX Runtime fuses Add and LayerNormalization into SkipLayerNormalization when the session is made, which
    takes several times as long as the two on CPU; a Sum is the same addition and is not fused.
    """

    name: ClassVar[str] = "residual"
    default: ClassVar[str] = "sum"

    @property
    def forms(self) -> Mapping[str, Form[Site]]:
        """``sum``: Sum in place of Add."""
        return {"sum": _as_sum}

    def sites(self, model: Model) -> list[Site]:
        """Every LayerNormalization over the sum of two computed values."""
        return disjoint(map(_at, model.graph))


def _at(node: ir.Node) -> Site | None:
    add = producer(operand(node, 0), "Add") if is_standard(node, "LayerNormalization") else None
    return None if add is None or any(map(is_constant, add.inputs)) else Site((add, node))


def _as_sum(rw: Rewriter, site: Site) -> None:
    add = site.nodes[0]
    rw.replace(add.outputs[0], rw.at(add).op("Sum", *add.inputs, name="sum"), take_name=True)
