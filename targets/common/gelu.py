"""GELU: the exact one, x · Φ(x), as exporters spell it out with Erf, and as one operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphcompress.analysis.activations import GELU, ActivationFunction, activations
from graphcompress.graph.expressions import is_constant
from graphcompress.graph.match import operand_beside, producer, rank_of
from graphcompress.graph.model import Model
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.common.family import CONTRIB, Family, Form, Site, disjoint


@dataclass(frozen=True, eq=False)
class GeluSite(Site):
    """``output = gelu(x + bias)``; without an addition in front, ``bias`` is None."""

    x: ir.Value
    bias: ir.Value | None


class Gelu(Family[GeluSite]):
    """``0.5 · x · (1 + erf(x / √2))``, or the operator Gelu, with the addition of a bias in front, if any.

    The tanh approximation is another function and is left alone.
    """

    name: ClassVar[str] = "gelu"
    default: ClassVar[str] = "gelu"

    @property
    def forms(self) -> Mapping[str, Form[GeluSite]]:
        """``gelu``: Gelu of com.microsoft after the addition; ``bias_gelu``: BiasGelu of com.microsoft."""
        return {"gelu": _as_gelu, "bias_gelu": _as_bias_gelu}

    def sites(self, model: Model) -> list[GeluSite]:
        """Every exact GELU, whichever order its factors are multiplied in."""
        return disjoint(_with_bias(found) for found in activations(model) if found.function == GELU)


def _with_bias(found: ActivationFunction) -> GeluSite:
    x, nodes = found.x, found.nodes
    add = producer(x, "Add")
    alone = not x.is_graph_output() and all(user in nodes for user, _ in x.uses())
    for bias in add.inputs if add is not None and alone else ():
        other = operand_beside(add, bias)
        if add is not None and other is not None and is_constant(bias) and rank_of(bias) == 1:
            return GeluSite((add, *nodes), other, bias)
    return GeluSite(nodes, x, None)


def _as_gelu(rw: Rewriter, site: GeluSite) -> None:
    x = site.nodes[0].outputs[0] if site.bias is not None else site.x
    value = site.place(rw).op("Gelu", x, name="", domain=CONTRIB)
    rw.replace(site.output, value, take_name=True)


def _as_bias_gelu(rw: Rewriter, site: GeluSite) -> None:
    if site.bias is None:
        return _as_gelu(rw, site)
    value = site.place(rw).op("BiasGelu", site.x, site.bias, name="", domain=CONTRIB)
    rw.replace(site.output, value, take_name=True)
