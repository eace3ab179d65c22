"""Smooths activations into the gain before them, before anything is quantised: an exact edit of the graph."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Linear
from graphcompress.numerics.metrics import sqnr_db
from graphcompress.numerics.observers import Activation
from graphcompress.numerics.quantise import affine, quantise_weight
from graphcompress.passes.quantize.equalise import Equalisable, divide, equalisable
from graphcompress.passes.quantize.outliers import smoothing
from graphcompress.passes.quantize.quantisable import tied_table
from graphcompress.rewrite.rewriter import Rewriter


def smooth(
    rw: Rewriter, chosen: Sequence[Linear], seen: Mapping[ir.Value, Activation], *, alpha: float, signed: bool
) -> Collection[ir.Value]:
    """Divide activations where that is exact and helps; returns them: they have to be observed again."""
    reasons: Counter[str] = Counter()
    smoothed: list[ir.Value] = []
    for value, activation in seen.items():
        # All readers of an activation take the same factors, since it is divided once for all of them.
        readers = [linear for linear in chosen if linear.input is value]
        if not readers:
            continue
        item = equalisable(value, readers)
        if any(tied_table(reader) for reader in readers):
            # Multiplying rows of a shared table would change what the embedding looks up.
            item = "an embedding shares the weight that would take them"
        factors = _factors(activation, readers, alpha, signed) if isinstance(item, Equalisable) else None
        if isinstance(item, str):
            reasons[item] += 1
        elif factors is None:
            reasons["it would not lower the error"] += 1
        else:
            divide(rw, item, factors)
            smoothed.append(value)
    for reason, count in reasons.items():
        rw.note(f"outliers of {count} activations were not moved into weights: {reason}")
    if smoothed:
        rw.note(f"outliers of {len(smoothed)} activations were moved into the weights that read them")
    return smoothed


def _factors(
    activation: Activation, readers: Sequence[Linear], alpha: float, signed: bool
) -> np.ndarray | None:
    """Factors per feature, or None where quantising with them is not better than without."""
    weights = np.concatenate([reader.dense() for reader in readers], axis=1)
    factors = smoothing(activation.peaks, np.abs(weights).max(axis=1), alpha)
    rows = activation.sample.rows
    plain = _joint_sqnr_db(rows, weights, signed)
    return factors if _joint_sqnr_db(rows / factors, weights * factors[:, None], signed) > plain else None


def _joint_sqnr_db(rows: np.ndarray, weights: np.ndarray, signed: bool) -> float:
    """SQNR of rows · weights [in, out] when both are quantised to their full range."""
    range_ = affine(float(rows.min(initial=0.0)), float(rows.max(initial=0.0)), signed=signed)
    return sqnr_db(rows @ weights, range_.fake_quantise(rows) @ quantise_weight(weights).dequantise())
