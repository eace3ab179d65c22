"""Which features of a residual stream go where it cannot be rotated, and what its norms do without them."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Linear
from graphcompress.coupling.stream import Stream
from graphcompress.cutting.cut import cut
from graphcompress.data.load import Samples
from graphcompress.graph.expressions import evaluate, leaves
from graphcompress.graph.model import Model
from graphcompress.measure.calibrate import observe
from graphcompress.narrowing.rotation import evaluated, scale_epsilon
from graphcompress.numerics.importance import TINY, contribution, eliminate_together
from graphcompress.numerics.least_squares import GatheredRows, JointMoments
from graphcompress.plugin.context import Progress
from graphcompress.rewrite.rewriter import Rewriter

RIDGE = 0.3
"""Strength of the ridge while features are chosen, in units of their mean variance."""


def features_to_keep(
    model: Model, stream: Stream, samples: Samples | None, measure: str, width: int, progress: Progress
) -> np.ndarray:
    """[features] a mask of the ``width`` features whose loss costs least, by ``measure``."""
    if samples is None or measure == "magnitude":
        costs = _written(stream) * sum(_read(each) for each in stream.group.consumers)
        gone = np.argsort(costs, kind="stable")[: stream.width - width]
    else:
        moments, weights = _evidence(model, stream, samples, progress)
        if measure == "obs":
            covariances = [each.covariance for each in moments]
            gone = eliminate_together(covariances, weights, stream.width - width, RIDGE)
        else:
            units = np.arange(stream.width)
            parts = [
                contribution(each.xx[:-1, :-1] / max(each.count, 1), weight, units, stream.width)
                for each, weight in zip(moments, weights, strict=True)
            ]
            costs = sum((part / max(part.sum(), TINY) for part in parts), np.zeros(stream.width))
            gone = np.argsort(costs, kind="stable")[: stream.width - width]
    keep = np.ones(stream.width, bool)
    keep[gone] = False
    return keep


def narrow(rw: Rewriter, stream: Stream, keep: np.ndarray) -> None:
    """Cut features of ``stream``; a mean square over those left is brought to what it was over all.

    Where the features that go are zero, an RMSNorm answers as before. A LayerNorm does not: its mean is over
    fewer features, which no gain makes up for.
    """
    shares = _energy_left(stream, keep)
    cut(rw, {stream.group: keep})
    ratio = len(keep) / int(keep.sum())
    for norm in stream.norms:
        scale_epsilon(rw, norm, ratio)
        if norm.gain is not None:
            factor = np.sqrt(ratio * shares)
            node, index = norm.gain
            vector = rw.at(node).constant(evaluated(norm.gain) * factor, "gain", node.inputs[index])
            rw.set_input(node, index, vector)
    rw.clean()


def _energy_left(stream: Stream, keep: np.ndarray) -> float:
    """Share of the energy that is written into the stream which lies in what stays."""
    energy = _written(stream)
    return float(energy[keep].sum()) / max(float(energy.sum()), TINY)


def _written(stream: Stream) -> np.ndarray:
    """[features] mean squares of all that is stored to be written into a stream."""
    readers = {leaf for linear in stream.group.consumers for leaf in leaves(linear.weight)}
    norms = {place for norm in stream.norms for place in (norm.gain, norm.shift) if place is not None}
    total = np.zeros(stream.width)
    for part in stream.group.slices:
        if part.value not in readers and not norms.intersection((u.node, u.idx) for u in part.value.uses()):
            array = np.moveaxis(evaluate(part.value).astype(np.float64), part.axis, -1)
            squares = np.square(array.reshape(-1, array.shape[-1])).mean(axis=0)
            owned = part.units >= 0
            total += np.bincount(part.units[owned], weights=squares[owned], minlength=stream.width)
    return total


def _read(linear: Linear) -> np.ndarray:
    """[features] squares of what a linear reads of each."""
    weight = linear.dense().astype(np.float64)
    found: np.ndarray = np.square(weight).sum(axis=1)
    return found


def _evidence(
    model: Model, stream: Stream, samples: Samples, progress: Progress
) -> tuple[list[JointMoments], list[np.ndarray]]:
    """For every value that linears read: its moments, and their weights [features, ·] side by side."""
    readers: dict[ir.Value, list[Linear]] = {}
    for linear in stream.group.consumers:
        readers.setdefault(linear.input, []).append(linear)
    observers = {value: GatheredRows(JointMoments(stream.width)) for value in readers}
    observe(model, observers, samples, progress=progress, text="prune: features of the stream")
    moments = [observers[value].finished() for value in readers]
    return moments, [_side_by_side(several) for several in readers.values()]


def _side_by_side(several: Sequence[Linear]) -> np.ndarray:
    """[features, features] a weight whose rows have the products of those of all weights."""
    whole = np.concatenate([linear.dense().astype(np.float64) for linear in several], axis=1)
    # Costs are made of products of rows alone: a square root of W·Wᵀ has the same ones in fewer columns.
    values, vectors = np.linalg.eigh(whole @ whole.T)
    found: np.ndarray = vectors * np.sqrt(np.maximum(values, 0.0))
    return found
