"""Normalisation and quantisation: a scale for each index along an axis."""

from __future__ import annotations

import onnx_ir as ir

from graphcompress.coupling.relations.rules import AVERAGED, Axes, Relations
from graphcompress.graph.match import axis_of


def layer_norm(relations: Relations, node: ir.Node) -> None:
    """LayerNormalization and RMSNormalization: a mean runs over the axes that are normalised."""
    source, out = relations.operand(node, 0) or [], relations.output(node) or []
    relations.unify(source, out)
    for index in (1, 2):
        relations.broadcast(relations.operand(node, index), out)
    first = axis_of(node, len(source), -1)
    for atom in source[first:]:
        if atom is not None:
            relations.atoms.mark(atom, AVERAGED, f"{node.op_type} runs over it")
    for index in range(1, len(node.outputs)):
        statistics = relations.output(node, index)
        if statistics is not None:
            relations.unify(source[:first], statistics[:first])


def batch_norm(relations: Relations, node: ir.Node) -> None:
    """Scale, bias, mean and variance stand along channels."""
    source = relations.operand(node, 0) or []
    relations.unify(source, relations.output(node))
    for index in range(1, 5):
        relations.unify([source[1]], relations.operand(node, index))


def quantize(relations: Relations, node: ir.Node) -> None:
    """QuantizeLinear and DequantizeLinear: scales stand along an axis, or along blocks of it."""
    source = relations.operand(node, 0) or []
    relations.unify(source, relations.output(node))
    block_size = node.attributes.get_int("block_size", 0)
    for index in (1, 2):
        scale = relations.operand(node, index)
        if scale is None:
            continue
        if block_size:
            _per_block(relations, source, scale, axis_of(node, len(source), 1))
        elif len(scale) == 1:
            per_axis(relations, scale, source, axis_of(node, len(source), 1))


def _per_block(relations: Relations, source: Axes, scale: Axes, axis: int) -> None:
    relations.unify(source[:axis] + source[axis + 1 :], scale[:axis] + scale[axis + 1 :])
    relations.block([source[axis], scale[axis]], "it is quantised in blocks")


def per_axis(relations: Relations, scale: Axes | None, source: Axes | None, axis: int) -> None:
    """The last axis of a scale is an axis of what it scales, unless it is a scalar."""
    if scale and source and len(source) >= -axis:
        relations.atoms.unify(scale[-1], source[axis])
