"""Smooths activations into the gain before them, before anything is quantised: an exact edit of the graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Iterator, Mapping, Sequence

import numpy as np
import onnx_ir as ir
from networkx.utils import UnionFind

from graphcompress.analysis.linears import Linear, linears
from graphcompress.numerics.metrics import sqnr_db
from graphcompress.numerics.observers import Activation
from graphcompress.numerics.quantise import Affine, PerToken, affine, quantise_weight
from graphcompress.passes.quantize.equalise import Equalisable, divide, equalisable
from graphcompress.passes.quantize.outliers import smoothing
from graphcompress.passes.quantize.quantisable import tied_table
from graphcompress.rewrite.rewriter import Rewriter


def smooth(
    rw: Rewriter,
    chosen: Sequence[Linear],
    seen: Mapping[ir.Value, Activation],
    *,
    alpha: float,
    signed: bool,
    per_token: bool,
) -> Collection[ir.Value]:
    """Divide activations where that is exact and helps; returns them: they have to be observed again."""
    reasons: Counter[str] = Counter()
    smoothed: list[ir.Value] = []
    nodes = {linear.node for linear in chosen}
    for values in list(_groups(chosen, seen)):
        # An earlier division may have given a linear another weight, so they are looked up anew.
        now = linears(rw.model)
        items = [_item(value, now, nodes) for value in values]
        found = [item for item in items if isinstance(item, Equalisable)]
        factors = None
        if len(found) == len(items):
            factors = _factors([seen[value] for value in values], found, alpha, signed, per_token)
        if factors is not None:
            divide(rw, found, factors)
            smoothed.extend(values)
        else:
            why = next((item for item in items if isinstance(item, str)), "it would not lower the error")
            reasons[why] += len(values)
    for reason, count in reasons.items():
        rw.note(f"outliers of {count} activations were not moved into weights: {reason}")
    if smoothed:
        rw.note(f"outliers of {len(smoothed)} activations were moved into the weights that read them")
    return smoothed


def _groups(chosen: Sequence[Linear], seen: Mapping[ir.Value, Activation]) -> Iterator[list[ir.Value]]:
    """Activations that share a weight, together: the parts of a model that writes, and experts, share some.

    All readers of an activation take the same factors, and a weight that is stored once stays so only when
    all activations that it multiplies are divided by the same.
    """
    links: UnionFind[ir.Value] = UnionFind()
    for linear in chosen:
        links.union(linear.input, linear.weight)
    groups: dict[ir.Value, list[ir.Value]] = {}
    for value in seen:
        groups.setdefault(links[value], []).append(value)
    yield from groups.values()


def _item(value: ir.Value, now: Sequence[Linear], nodes: Collection[ir.Node]) -> Equalisable | str:
    readers = [linear for linear in now if linear.input is value and linear.node in nodes]
    if any(tied_table(reader) for reader in readers):
        # Multiplying rows of a shared table would change what the embedding looks up.
        return "an embedding shares the weight that would take them"
    return equalisable(value, readers, {linear.output: linear for linear in now})


def _factors(
    seen: Sequence[Activation], items: Sequence[Equalisable], alpha: float, signed: bool, per_token: bool
) -> np.ndarray | None:
    """Factors per feature, or None where quantising with them is not better than without."""
    readers = {(one.weight, one.transposed): one for item in items for one in item.readers}
    weights = np.concatenate([reader.dense() for reader in readers.values()], axis=1)
    peaks = np.max([activation.peaks for activation in seen], axis=0)
    factors = smoothing(peaks, np.abs(weights).max(axis=1), alpha)
    rows = np.concatenate([activation.sample.rows for activation in seen])
    plain = _joint_sqnr_db(rows, weights, signed, per_token)
    divided = _joint_sqnr_db(rows / factors, weights * factors[:, None], signed, per_token)
    return factors if divided > plain else None


def _joint_sqnr_db(rows: np.ndarray, weights: np.ndarray, signed: bool, per_token: bool) -> float:
    """SQNR of rows · weights [in, out] when both are quantised to their full range.

    Where a target can also take a scale for each token, it is the mean of both ways: which one will be taken
    is not known yet.
    """
    exact, low = rows @ weights, quantise_weight(weights).dequantise()
    range_ = affine(float(rows.min(initial=0.0)), float(rows.max(initial=0.0)), signed=signed)
    ways: list[Affine | PerToken] = [range_, PerToken()] if per_token else [range_]
    return float(np.mean([sqnr_db(exact, way.fake_quantise(rows) @ low) for way in ways]))
