"""GELU: the exact one, x · Φ(x), as exporters spell it out with Erf, and as one operator."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphcompress.analysis.activations import GELU, Activation, activations
from graphcompress.graph.expressions import is_constant
from graphcompress.graph.match import is_standard
from graphcompress.graph.model import Model
from graphcompress.rewrite.rewriter import Rewriter, put_in_place
from graphcompress.targets.common.family import CONTRIB, Family, Rewrite, Site, disjoint


@dataclass(frozen=True, eq=False)
class GeluSite(Site):
    """``output = gelu(x + bias)``; without an addition in front, ``bias`` is None."""

    x: ir.Value
    bias: ir.Value | None


class Gelu(Family):
    """``0.5 · x · (1 + erf(x / √2))``, or the operator Gelu, with the addition of a bias in front, if any.

    The tanh approximation is another function and is left alone.
    """

    name: ClassVar[str] = "gelu"
    default: ClassVar[str] = "gelu"

    @property
    def forms(self) -> Mapping[str, Rewrite]:
        """``gelu``: Gelu of com.microsoft after the addition; ``bias_gelu``: BiasGelu of com.microsoft."""
        return {"gelu": _as_gelu, "bias_gelu": _as_bias_gelu}

    def sites(self, model: Model) -> list[Site]:
        """Every exact GELU, whichever order its factors are multiplied in."""
        return disjoint(_with_bias(found) for found in activations(model) if found.function == GELU)


def _with_bias(found: Activation) -> GeluSite:
    x, nodes = found.x, found.nodes
    add = x.producer()
    inside = set(nodes)
    alone = not x.is_graph_output() and all(user in inside for user, _ in x.uses())
    if add is None or not is_standard(add, "Add") or not alone:
        return GeluSite(nodes, x, None)
    for bias, other in (tuple(add.inputs), tuple(reversed(add.inputs))):
        if other is not None and _is_vector(bias):
            return GeluSite((add, *nodes), other, bias)
    return GeluSite(nodes, x, None)


def _is_vector(value: ir.Value | None) -> bool:
    return value is not None and is_constant(value) and value.shape is not None and len(value.shape) == 1


def _as_gelu(rw: Rewriter, site: Site) -> None:
    if not isinstance(site, GeluSite):
        return
    last = site.nodes[-1]
    x = site.nodes[0].outputs[0] if site.bias is not None else site.x
    put_in_place(rw, last.outputs[0], rw.node("Gelu", x, before=last, name=site.name, domain=CONTRIB))


def _as_bias_gelu(rw: Rewriter, site: Site) -> None:
    if not isinstance(site, GeluSite) or site.bias is None:
        _as_gelu(rw, site)
        return
    last = site.nodes[-1]
    value = rw.node("BiasGelu", site.x, site.bias, before=last, name=site.name, domain=CONTRIB)
    put_in_place(rw, last.outputs[0], value)
