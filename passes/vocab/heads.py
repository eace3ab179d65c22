"""The heads of a model that writes: which linear scores every token, and how it loses some of them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Linear, embeddings, linears
from graphcompress.graph.broadcasting import BROADCASTING, ELEMENTWISE
from graphcompress.graph.match import fixed_shape, only_reader, producer
from graphcompress.graph.model import Model
from graphcompress.numerics.metrics import NEVER
from graphcompress.rewrite.rewriter import Rewriter


@dataclass(frozen=True, eq=False)
class Head:
    """A linear with a score for every token, and what is done to each score by itself.

    Attributes:
        linear: the product.
        table: the embedding [rows, width] that it multiplies with, turned over; None where it has its own.
        scores: [..., tokens], behind the last operator that works on each by itself.
        constants: node and operand with a number for each token, such as a bias.
    """

    linear: Linear
    table: ir.Value | None
    scores: ir.Value
    constants: tuple[tuple[ir.Node, int], ...]

    @property
    def readers(self) -> tuple[ir.Node, ...]:
        """Nodes of it that read the table: the product, or what turns the table over for it."""
        turned = producer(self.linear.weight, "Transpose")
        return (self.linear.node,) if turned is None else (self.linear.node, turned)


def heads_of(model: Model) -> list[Head]:
    """Heads that are tied to an embedding; of a model that writes also those with a table of their own."""
    tables = {item.weight: item.rows for item in embeddings(model)}
    found = []
    for linear in linears(model):
        turned = producer(linear.weight, "Transpose")
        own = linear.weight if turned is None else turned.inputs[0]
        tied = own if own in tables and tables[own] == linear.out_features else None
        scores, constants = _scores(linear)
        writes = (scores.name or "").rpartition("/")[2] == "logits" and bool(model.parts)
        if tied is not None or (
            writes and linear.out_features in tables.values() and linear.weight.const_value is not None
        ):
            found.append(Head(linear, tied, scores, tuple(constants)))
    return found


def cut_head(rw: Rewriter, head: Head, kept: Collection[int], table: ir.Value | None) -> None:
    """Let ``head`` score the tokens ``kept`` alone; all others get a score that never wins.

    ``table`` are the rows that are left of the embedding that it is tied to.
    """
    linear = head.linear
    rows = np.array(sorted(index for index in kept if index < linear.out_features))
    rw.touch(linear, f"{len(rows):,} of {linear.out_features:,} tokens are scored")
    if table is None:
        weight = rw.constant(linear.dense()[:, rows], f"{linear.name}.kept", linear.weight.dtype)
    else:
        weight = rw.at(linear.node).op("Transpose", table, name="head", perm=[1, 0])
    for node, index in head.constants:
        value = node.inputs[index]
        if value is not None and value.const_value is not None:
            array = value.const_value.numpy()[..., rows]
            rw.set_input(node, index, rw.constant(array, f"{value.name}.kept", value.dtype))
    rw.set_attribute(linear.node, "transB", None)
    rw.set_input(linear.node, 1, weight)
    _put_back(rw, head, rows)


def _put_back(rw: Rewriter, head: Head, rows: np.ndarray) -> None:
    """Scores stand where they stood before; between them is one for all tokens that are gone."""
    scores, b = head.scores, rw.at(None, head.scores.name)
    rank = len(scores.shape or ())
    padded = b.op("Pad", scores, [0] * (2 * rank - 1) + [1], NEVER, name="padded")
    rw.replace(scores, padded)
    places = np.full(head.linear.out_features, len(rows), np.int32)
    places[rows] = np.arange(len(rows))
    rw.replace(padded, b.op("Gather", padded, places, name="whole", axis=rank - 1))


def _scores(linear: Linear) -> tuple[ir.Value, list[tuple[ir.Node, int]]]:
    """Where the scores of a linear end, and the constants on the way that have a number for each of them."""
    value, size = linear.node.outputs[0], linear.out_features
    constants = [(linear.node, 2)] if linear.node.op_type == "Gemm" and linear.bias is not None else []
    while node := only_reader(value, *BROADCASTING, *ELEMENTWISE):
        others = [(index, other) for index, other in enumerate(node.inputs) if other is not value]
        if not all(_is_beside(other, size) for _, other in others):
            break
        constants += [(node, index) for index, other in others if _width(other) == size > 1]
        value = node.outputs[0]
    return value, constants


def _is_beside(value: ir.Value | None, size: int) -> bool:
    """Whether a constant has one number for all scores, or one for each."""
    return value is not None and value.const_value is not None and _width(value) in (1, size)


def _width(value: ir.Value | None) -> int | None:
    shape = fixed_shape(value)
    return None if shape is None else shape[-1] if shape else 1
