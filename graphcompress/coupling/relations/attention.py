"""Attention and RotaryEmbedding, the operators of opset 23."""

from __future__ import annotations

import onnx_ir as ir

from graphcompress.coupling.relations.rules import CONTRACTED, Axes, Relations
from graphcompress.graph.sizes import Size


def attention(relations: Relations, node: ir.Node) -> None:
    """Attention of opset 23: heads are axis 1 of [batch, heads, length, size], or part of the last axis."""
    atoms = relations.atoms
    query, key, value = (_by_heads(relations, node, index) for index in range(3))
    out = _heads_of(relations, relations.output(node), node.attributes.get_int("q_num_heads", 0))
    if query is None or key is None or value is None or out is None:
        relations.block_node(node, "the heads of an Attention are not known")
        return
    for operand in (key, value, out):
        atoms.unify(query[0], operand[0])
    atoms.unify(key[1], value[1])
    atoms.unify(query[1], out[1])
    _grouped_heads(relations, query[1], key[1])
    atoms.unify(query[2], out[2])
    atoms.unify(key[2], value[2])
    atoms.unify(query[3], key[3])
    atoms.unify(value[3], out[3])
    if query[3] is not None:
        atoms.mark(query[3], CONTRACTED, node.name or "")
        if "scale" not in node.attributes:
            atoms.block([query[3]], "the scale of an Attention follows from it")
    relations.broadcast(relations.operand(node, 3), [query[0], query[1], query[2], key[2]])
    cached = [relations.operand(node, index) for index in (4, 5)]
    cached += [relations.axes(value) for value in node.outputs[1:] if value.uses() or value.is_graph_output()]
    for axes in cached:
        relations.block(axes, "a cache or a trace of an Attention")
    if any(cached):
        atoms.block([key[1], key[3], value[3], query[1]], "a cache or a trace of an Attention has this shape")


def _by_heads(relations: Relations, node: ir.Node, index: int) -> Axes | None:
    name = "q_num_heads" if index == 0 else "kv_num_heads"
    return _heads_of(relations, relations.operand(node, index), node.attributes.get_int(name, 0))


def _heads_of(relations: Relations, axes: Axes | None, heads: int) -> Axes | None:
    """Axes as [batch, heads, length, size]."""
    if axes is None or len(axes) == 4:
        return axes
    batch, length, width = axes
    size = None if width is None else relations.atoms.size(width).over(Size(heads or 1))
    if not heads or width is None or size is None:
        return None
    parts = [None if part == Size(1) else relations.atoms.new(part) for part in (Size(heads), size)]
    relations.atoms.match([width], [part for part in parts if part is not None])
    return [batch, parts[0], length, parts[1]]


def _grouped_heads(relations: Relations, query: int | None, key: int | None) -> None:
    """Each head of keys and values serves a run of consecutive query heads."""
    if query is None or key is None:
        return
    repeat = relations.atoms.size(query).over(relations.atoms.size(key))
    if repeat is None:
        relations.atoms.block([query, key], "query heads are no multiple of key heads")
    elif repeat == Size(1):
        relations.atoms.unify(query, key)
    else:
        relations.atoms.unify(query, relations.atoms.product([key, relations.atoms.new(repeat)]))


def rotary(relations: Relations, node: ir.Node) -> None:
    """RotaryEmbedding of opset 23: turns pairs within each head."""
    relations.unify(relations.operand(node, 0), relations.output(node))
    heads = _heads_of(relations, relations.output(node), node.attributes.get_int("num_heads", 0))
    if heads is None:
        relations.block_node(node, "the heads of a RotaryEmbedding are not known")
        return
    relations.block(heads[3:], "RotaryEmbedding turns pairs in it")
    for index in (1, 2, 3):
        relations.block(relations.operand(node, index), "RotaryEmbedding reads it by position")
