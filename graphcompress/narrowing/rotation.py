"""Turns a residual stream into its principal axes, as SliceGPT does.

RMSNorm commutes with a rotation, its gain does not: that goes into the weights behind it. LayerNorm is
RMSNorm of what is left without the mean, so that a rotation commutes with it which maps the direction
(1, …, 1) of the old features to that of the new ones. One rotation serves the whole stream: with another one
for every layer (arXiv:2401.15024) the skip connections would need a product of two of them, and those
matrices cost what the narrower stream saves.
"""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Linear, bias_of
from graphcompress.coupling.stream import Norm, Place, Stream, is_tied
from graphcompress.cutting.cut import cut
from graphcompress.data.load import Samples
from graphcompress.graph.expressions import evaluate
from graphcompress.graph.model import Model
from graphcompress.measure.calibrate import observe
from graphcompress.numerics.moments import SecondMoment
from graphcompress.plugin.context import Progress
from graphcompress.rewrite.bias import write_bias
from graphcompress.rewrite.rewriter import Rewriter

EPSILON = 1e-5
"""Of a normalisation whose node says none."""


class _Directions:
    """Second moment of what a norm makes of tokens, before its gain; an observer."""

    def __init__(self, width: int, *, centred: bool) -> None:
        self._moment = SecondMoment(width)
        self._centred = centred

    def update(self, array: np.ndarray) -> None:
        rows = array.reshape(-1, array.shape[-1]).astype(np.float64)
        if self._centred:
            rows = rows - rows.mean(axis=-1, keepdims=True)
        # A token of zeros has no direction.
        size = np.sqrt(np.mean(rows * rows, axis=-1, keepdims=True))
        self._moment.update(rows / np.where(size > 0, size, 1.0))

    @property
    def matrix(self) -> np.ndarray:
        """E[x̂·x̂ᵀ]."""
        matrix: np.ndarray = self._moment.total / max(self._moment.count, 1)
        return matrix


def directions(model: Model, stream: Stream, samples: Samples, progress: Progress) -> np.ndarray:
    """[width, width] the mean second moment of what the norms of a stream are given, each token of one size.

    A norm sees the direction of a token alone, however long its sums have become in the layers before.
    """
    observers = {norm.entry: _Directions(stream.width, centred=norm.centred) for norm in stream.norms}
    observe(model, observers, samples, progress=progress, text="prune: directions of the stream")
    matrix: np.ndarray = np.mean([each.matrix for each in observers.values()], axis=0)
    return matrix


def rotate(rw: Rewriter, stream: Stream, onto: np.ndarray) -> None:
    """Let the features of ``stream`` be coordinates along the columns of ``onto`` [features, width].

    What lies beside those columns is lost; with as many columns as features nothing is. Gains and shifts of
    the norms go into the weights and biases behind them.
    """
    features, width = onto.shape
    heads = [linear for linear in stream.group.consumers if is_tied(stream.group, linear)]
    bridges = {linear: _bridge(stream, linear, onto) for linear in heads}
    _move_shifts(rw, stream)
    padded = np.concatenate([onto, np.zeros((features, features - width))], axis=1)
    _write(rw, stream, padded, {linear.weight for linear in heads})
    known = {name: dict(axes) for name, axes in rw.model.kept.items()}
    cut(rw, {stream.group: np.arange(features) < width})
    # No feature that is left is one of the original's.
    rw.model.kept = known
    for norm in stream.norms:
        _plain(rw, norm, width)
        scale_epsilon(rw, norm, features / width)
    for linear, bridge in bridges.items():
        b, source = rw.at(linear.node, linear.name), linear.node.inputs[0]
        rw.set_input(linear.node, 0, b.op("MatMul", source, bridge, name="bridged"))
    rw.clean()


def _factor(stream: Stream, linear: Linear, ratio: float) -> np.ndarray:
    """[features] what the norm before a reader multiplies by, once its own mean square is over fewer."""
    norm = stream.read.get(linear.node)
    if norm is None:
        return np.ones(stream.width)
    gain = np.ones(stream.width) if norm.gain is None else evaluated(norm.gain)
    return gain * float(np.sqrt(ratio))


def _bridge(stream: Stream, linear: Linear, onto: np.ndarray) -> np.ndarray:
    """[width, width] what stands in front of a head that shares its weight with the table of tokens.

    Its gain cannot go into a weight that is also a table, so it is brought into the new coordinates, by least
    squares over all tokens.
    """
    features, width = onto.shape
    weight = linear.dense().astype(np.float64)
    turned = onto.T @ weight
    wanted = (onto.T * _factor(stream, linear, features / width)) @ weight
    solved: np.ndarray = np.linalg.lstsq(turned @ turned.T, turned @ wanted.T, rcond=None)[0].T
    return solved


def _move_shifts(rw: Rewriter, stream: Stream) -> None:
    """Let the biases of the readers do what the shift of the norm before them does."""
    by_weight: dict[ir.Value, list[Linear]] = {}
    for linear in stream.group.consumers:
        by_weight.setdefault(linear.weight, []).append(linear)
    for several in by_weight.values():
        norm = stream.read.get(several[0].node)
        if norm is not None and norm.shift is not None:
            write_bias(rw, several, bias_of(several[0]) + evaluated(norm.shift) @ several[0].dense())


def _write(rw: Rewriter, stream: Stream, onto: np.ndarray, tables: set[ir.Value]) -> None:
    """Multiply all that is stored along the stream by ``onto`` [features, features]."""
    width = int(onto.any(axis=0).sum())
    readers = {linear.weight: linear for linear in stream.group.consumers}
    vectors = {place for norm in stream.norms for place in (norm.gain, norm.shift) if place is not None}
    done: set[ir.Value] = set()
    for part in stream.group.slices:
        if part.value in done or vectors.intersection((use.node, use.idx) for use in part.value.uses()):
            continue
        done.add(part.value)
        array = np.moveaxis(evaluate(part.value).astype(np.float64), part.axis, -1)
        if part.value in readers and part.value not in tables:
            array = array * _factor(stream, readers[part.value], len(onto) / width)
        rw.overwrite(part.value, np.moveaxis(array @ onto, -1, part.axis))


def _plain(rw: Rewriter, norm: Norm, width: int) -> None:
    """Take gain and shift away: the weights behind the norm have them now."""
    for place, name, number in ((norm.gain, "gain", 1.0), (norm.shift, "shift", 0.0)):
        if place is not None:
            vector = rw.at(place[0]).constant(np.full(width, number), name, place[0].inputs[place[1]])
            rw.set_input(*place, vector)


def scale_epsilon(rw: Rewriter, norm: Norm, ratio: float) -> None:
    """Multiply ε by what a mean square over fewer features is larger."""
    if norm.epsilon is None:
        (node,) = norm.nodes
        rw.set_attribute(node, "epsilon", node.attributes.get_float("epsilon", EPSILON) * ratio)
        return
    node, index = norm.epsilon
    number = evaluated(norm.epsilon) * ratio
    rw.set_input(node, index, rw.at(node).constant(number, "epsilon", node.inputs[index]))


def evaluated(place: Place) -> np.ndarray:
    """The numbers that are stored where a norm reads its gain, its shift or ε."""
    value = place[0].inputs[place[1]]
    return np.zeros(0) if value is None else evaluate(value).astype(np.float64)
