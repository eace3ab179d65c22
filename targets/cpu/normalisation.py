"""Residual addition and LayerNormalization."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import onnx_ir as ir

from graphcompress.graph.expressions import is_constant
from graphcompress.graph.match import is_standard
from graphcompress.graph.model import Model
from graphcompress.rewrite.rewriter import Rewriter, put_in_place
from graphcompress.targets.common.family import Family, Rewrite, Site, disjoint


class Residual(Family):
    """``LayerNormalization(a + b)``.

    ONNX Runtime fuses Add and LayerNormalization into SkipLayerNormalization when the session is made, which
    takes several times as long as the two on CPU; a Sum is the same addition and is not fused.
    """

    name: ClassVar[str] = "residual"
    default: ClassVar[str] = "sum"

    @property
    def forms(self) -> Mapping[str, Rewrite]:
        """``sum``: Sum in place of Add."""
        return {"sum": _as_sum}

    def sites(self, model: Model) -> list[Site]:
        """Every LayerNormalization over the sum of two computed values."""
        return disjoint(site for node in model.graph if (site := _at(node)) is not None)


def _at(node: ir.Node) -> Site | None:
    summed = node.inputs[0] if is_standard(node, "LayerNormalization") else None
    add = summed.producer() if summed is not None else None
    if add is None or not is_standard(add, "Add") or any(is_constant(value) for value in add.inputs):
        return None
    return Site((add, node))


def _as_sum(rw: Rewriter, site: Site) -> None:
    add = site.nodes[0]
    total = rw.node("Sum", *add.inputs, before=add, name=f"{add.outputs[0].name}.sum")
    put_in_place(rw, add.outputs[0], total)
