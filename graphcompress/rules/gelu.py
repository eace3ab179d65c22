"""GELU: the exact one, x · Φ(x), as exporters spell it out with Erf, and as one operator."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import onnx_ir as ir

from graphcompress.analysis.arguments import scalar
from graphcompress.graph.expressions import is_constant
from graphcompress.graph.model import Model
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.family import (
    CONTRIB,
    Family,
    Rewrite,
    Site,
    disjoint,
    is_standard,
    only_reader,
    operand_beside,
    put_in_place,
)

_TOLERANCE = 1e-4


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
        return disjoint(site for node in model.graph if (site := _at(node)) is not None)


def _at(node: ir.Node) -> GeluSite | None:
    if node.op_type == "Gelu":
        approximate = node.attributes.get_string("approximate", "none")
        x = node.inputs[0]
        return _with_bias(x, (node,)) if approximate == "none" and x is not None else None
    return _spelt_out(node) if is_standard(node, "Erf") else None


def _spelt_out(erf: ir.Node) -> GeluSite | None:
    """The site around an Erf: Erf(x/√2) + 1, times x and ½ in any order."""
    scaled = erf.inputs[0].producer() if erf.inputs[0] is not None else None
    x = _divided_by_root_two(scaled)
    add = only_reader(erf.outputs[0])
    if x is None or scaled is None or add is None or not is_standard(add, "Add"):
        return None
    if not _near(scalar(operand_beside(add, erf.outputs[0])), 1.0):
        return None
    multiplied = _multiplied(add.outputs[0], x)
    if multiplied is None:
        return None
    inner = [scaled] if len(scaled.outputs[0].uses()) == 1 else []
    return _with_bias(x, (*inner, erf, add, *multiplied))


def _multiplied(value: ir.Value, x: ir.Value) -> list[ir.Node] | None:
    """Nodes that multiply ``value`` by x and by ½, one after the other or one product with the other."""
    nodes: list[ir.Node] = []
    found_x = found_half = False
    while not (found_x and found_half):
        node = only_reader(value)
        if node is None or not is_standard(node, "Mul"):
            return None
        other = operand_beside(node, value)
        nodes.append(node)
        value = node.outputs[0]
        halved = _halved(other, x)
        if halved is not None and not found_x and not found_half:
            return [halved, *nodes] if len(halved.outputs[0].uses()) == 1 else nodes
        if other is x and not found_x:
            found_x = True
        elif _near(scalar(other), 0.5) and not found_half:
            found_half = True
        else:
            return None
    return nodes


def _halved(value: ir.Value | None, x: ir.Value) -> ir.Node | None:
    """The node that computes ½ · x, when ``value`` is that."""
    node = value.producer() if value is not None else None
    if node is None or not is_standard(node, "Mul") or x not in node.inputs:
        return None
    return node if _near(scalar(operand_beside(node, x)), 0.5) else None


def _divided_by_root_two(node: ir.Node | None) -> ir.Value | None:
    if node is None:
        return None
    if is_standard(node, "Div") and _near(scalar(node.inputs[1]), math.sqrt(2.0)):
        return node.inputs[0]
    if not is_standard(node, "Mul"):
        return None
    for index in (0, 1):
        if _near(scalar(node.inputs[index]), math.sqrt(0.5)):
            return node.inputs[1 - index]
    return None


def _with_bias(x: ir.Value, nodes: tuple[ir.Node, ...]) -> GeluSite:
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


def _near(value: float | None, wanted: float) -> bool:
    return value is not None and abs(value - wanted) <= _TOLERANCE * abs(wanted)
