"""Rows of an int8 table: how they become floats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphcompress.graph.expressions import evaluate, is_constant
from graphcompress.graph.match import dtype_of, is_standard, operand, producer, rank_of
from graphcompress.graph.model import Model
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.common.family import Family, Form, Site, disjoint


class DequantisedRows(Family[Site]):
    """``DequantizeLinear(rows)`` with one scale per feature, rows being looked up in a table.

    ONNX Runtime dequantises along the last axis number by number.
    """

    name: ClassVar[str] = "int8 table"
    default: ClassVar[str] = "scaled"

    @property
    def forms(self) -> Mapping[str, Form[Site]]:
        """``scaled``: the same numbers by Cast and Mul."""
        return {"scaled": _as_scaled}

    def sites(self, model: Model) -> list[Site]:
        """Every DequantizeLinear of rows that a Gather found in a constant table."""
        return disjoint(Site((node,)) for node in model.graph if _is_site(node))


def _is_site(node: ir.Node) -> bool:
    if not is_standard(node, "DequantizeLinear") or node.attributes.get_int("block_size", 0) != 0:
        return False
    rows, *parameters = node.inputs
    rank, gather = rank_of(rows), producer(rows, "Gather")
    if rank is None or gather is None or not is_constant(gather.inputs[0]) or rank_of(parameters[0]) != 1:
        return False
    return node.attributes.get_int("axis", 1) in (-1, rank - 1) and all(map(is_constant, parameters))


def _as_scaled(rw: Rewriter, site: Site) -> None:
    (node,), place = site.nodes, site.place(rw)
    scale, zero = operand(node, 1), operand(node, 2)
    value = place.op("Cast", node.inputs[0], name="float", to=int(dtype_of(scale)))
    if zero is not None and np.any(zeros := evaluate(zero)):
        value = place.op("Sub", value, place.constant(zeros, "shift", like=scale), name="shifted")
    rw.replace(site.output, place.op("Mul", value, scale, name=""), take_name=True)
