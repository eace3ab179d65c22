"""What a model is made of, before and after: its weights, its blocks, and how errors grow with depth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Embedding, Linear, embeddings, linears
from graphcompress.coupling.layers import Layer, layers
from graphcompress.data.samples import Samples
from graphcompress.graph.expressions import leaves
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.verify import output_difference
from graphcompress.numerics.metrics import error_at

DEPTH_SAMPLES = 4
"""The outputs of all blocks are kept for so many samples: more would take a large model's worth of memory."""


@dataclass(frozen=True)
class StoredWeight:
    """A linear [rows = in, columns = out] or an embedding, as it is stored."""

    name: str
    kind: str
    rows: int
    columns: int
    parameters: int
    stored_bytes: int


@dataclass(frozen=True)
class BlockSize:
    """What is left of one transformer block: its attention heads, and the nodes of its feed-forward part."""

    name: str
    heads: int
    ffn_nodes: int


@dataclass(frozen=True)
class Anatomy:
    """The weights and blocks of a model, in execution order."""

    weights: tuple[StoredWeight, ...] = ()
    blocks: tuple[BlockSize, ...] = ()


@dataclass(frozen=True)
class PlaceError:
    """How far the output of a block is from the original's: ‖difference‖ / ‖original‖."""

    name: str
    error: float


def anatomy(model: Model) -> Anatomy:
    """What ``model`` is made of."""
    tables = [_weight("embedding", table, table.rows, table.width) for table in embeddings(model)]
    maps = [_weight("linear", one, one.in_features, one.out_features) for one in linears(model)]
    return Anatomy((*tables, *maps), tuple(map(_block, _blocks(model))))


class Parts:
    """The weights and blocks of a model as it came in, which are found again after it was rewritten.

    A pass may write a weight as what is a linear no more, such as integers for a MatMulInteger, or compute a
    block for some tokens alone: what names say is then all there is.
    """

    def __init__(self, model: Model) -> None:
        self.anatomy = anatomy(model)
        self._columns = {weight.name: weight.columns for weight in self.anatomy.weights}
        blocks = _blocks(model)
        self._forward = {block.name: [one.name for one in _forward(block)] for block in blocks}
        self._heads = {
            block.name: [(one.num_heads, one.producers[0].name) for one in block.attentions if one.producers]
            for block in blocks
        }

    def left(self, model: Model) -> Anatomy:
        """What is left of them in ``model``; weights that are gone are left out."""
        found = anatomy(model)
        weights = {one.name: one for one in found.weights}
        blocks = {one.name: one for one in found.blocks}
        stored = _stored(model, [weight.name for weight in self.anatomy.weights])
        kept = [weights.get(one.name) or _rewritten(one, stored[one.name]) for one in self.anatomy.weights]
        columns = {one.name: one.columns for one in kept if one is not None}
        sizes = [blocks.get(one.name) or self._size(one.name, columns) for one in self.anatomy.blocks]
        return Anatomy(tuple(one for one in kept if one is not None), tuple(sizes))

    def _size(self, block: str, columns: Mapping[str, int]) -> BlockSize:
        """A block by the columns of its weights: heads go with those of the first linear before them."""
        heads = [number * columns.get(name, 0) // self._columns[name] for number, name in self._heads[block]]
        nodes = [columns.get(name, 0) for name in self._forward[block]]
        return BlockSize(block, sum(heads), max(nodes, default=0))


def _stored(model: Model, names: Sequence[str]) -> dict[str, list[ir.Value]]:
    """The tensors of each weight: what is called as it is, with or without more words behind a dot."""
    found: dict[str, list[ir.Value]] = {name: [] for name in names}
    for value in model.initializers():
        stem = value.name or ""
        while stem and stem not in found:
            stem = stem.rpartition(".")[0]
        if stem:
            found[stem].append(value)
    return found


def _rewritten(weight: StoredWeight, tensors: Sequence[ir.Value]) -> StoredWeight | None:
    """A weight by its tensors, of which the largest has its shape; None where there is none."""
    arrays = [value.const_value for value in tensors if value.const_value is not None]
    if not arrays:
        return None
    largest = max(arrays, key=lambda array: array.size)
    rows, columns = largest.shape.numpy() if len(largest.shape) == 2 else (weight.rows, weight.columns)
    total = sum(array.nbytes for array in arrays)
    return StoredWeight(weight.name, weight.kind, rows, columns, largest.size, total)


class Depth:
    """The outputs of the blocks of a model as it came in, on a few samples."""

    def __init__(self, model: Model, samples: Samples) -> None:
        # A row of two texts is two samples, and rows are taken whole.
        self._samples = samples.first(-(-DEPTH_SAMPLES // samples.per_row))
        self._names = {block.exit.name or "": block.name for block in _blocks(model)}
        self._outputs = self._run(model)

    def errors(self, model: Model) -> tuple[PlaceError, ...]:
        """The error of every block's output in ``model``, of those that it still has in the same size."""
        found = self._run(model)
        return tuple(
            PlaceError(
                self._names[name], error_at(output_difference(name, self._outputs[name], array).sqnr_db)
            )
            for name, array in found.items()
            if name in self._outputs and array.shape == self._outputs[name].shape
        )

    def _run(self, model: Model) -> Mapping[str, np.ndarray]:
        by_name = {value.name: value for node in model.graph for value in node.outputs}
        values = [by_name[name] for name in self._names if name in by_name]
        if not values:
            return {}
        with Runner(model, values) as runner:
            # One batch, of no more samples than memory holds.
            return runner(self._samples.batch(range(self._samples.batch_size(len(self._samples)))))


def _blocks(model: Model) -> list[Layer]:
    return layers(model, ())


def _weight(kind: str, item: Linear | Embedding, rows: int, columns: int) -> StoredWeight:
    stored = [leaf.const_value.nbytes for leaf in leaves(item.weight) if leaf.const_value is not None]
    return StoredWeight(item.name, kind, rows, columns, item.parameters, sum(stored))


def _block(layer: Layer) -> BlockSize:
    ffn = [linear.out_features for linear in _forward(layer)]
    return BlockSize(layer.name, sum(found.num_heads for found in layer.attentions), max(ffn, default=0))


def _forward(layer: Layer) -> Sequence[Linear]:
    """The linears that make the nodes of the feed-forward part."""
    attending = {
        linear.node
        for attention in layer.attentions
        for linear in (*attention.producers, *attention.consumers)
    }
    others = [linear for linear in layer.linears if linear.node not in attending]
    return others[:-1]  # the last one leads back to the residual stream
