"""Rows of an int8 table: how they become floats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphcompress.graph.expressions import evaluate, is_constant
from graphcompress.graph.match import is_standard
from graphcompress.graph.model import Model
from graphcompress.rewrite.rewriter import Rewriter, put_in_place
from graphcompress.targets.common.family import Family, Rewrite, Site, disjoint

_WITH_ZERO_POINT = 3


class DequantisedRows(Family):
    """``DequantizeLinear(rows)`` with one scale per feature, rows being looked up in a table.

    ONNX Runtime dequantises along the last axis number by number.
    """

    name: ClassVar[str] = "int8 table"
    default: ClassVar[str] = "scaled"

    @property
    def forms(self) -> Mapping[str, Rewrite]:
        """``scaled``: the same numbers by Cast and Mul."""
        return {"scaled": _as_scaled}

    def sites(self, model: Model) -> list[Site]:
        """Every DequantizeLinear of rows that a Gather found in a constant table."""
        return disjoint(Site((node,)) for node in model.graph if _is_site(node))


def _is_site(node: ir.Node) -> bool:
    if not is_standard(node, "DequantizeLinear") or node.attributes.get_int("block_size", 0) != 0:
        return False
    rows, scale = node.inputs[0], node.inputs[1]
    gather = rows.producer() if rows is not None else None
    if gather is None or not is_standard(gather, "Gather") or not is_constant(gather.inputs[0]):
        return False
    if rows is None or rows.shape is None or scale is None or scale.shape is None or len(scale.shape) != 1:
        return False
    last = len(rows.shape) - 1
    return node.attributes.get_int("axis", 1) in (-1, last) and all(map(is_constant, node.inputs[1:]))


def _as_scaled(rw: Rewriter, site: Site) -> None:
    (node,) = site.nodes
    scale = node.inputs[1]
    if scale is None or scale.dtype is None:
        return
    value = rw.node("Cast", node.inputs[0], before=node, name=f"{site.name}.float", to=scale.dtype.value)
    zero = node.inputs[2] if len(node.inputs) == _WITH_ZERO_POINT else None
    if zero is not None and np.any(zeros := evaluate(zero)):
        shift = rw.constant(zeros.astype(scale.dtype.numpy()), f"{site.name}.shift")
        value = rw.node("Sub", value, shift, before=node, name=f"{site.name}.shifted")
    put_in_place(rw, node.outputs[0], rw.node("Mul", value, scale, before=node, name=site.name))
