"""In which order the units of a block go: by weights, by what samples show, or by what the others replace."""

from __future__ import annotations

import numpy as np

from graphcompress.analysis.linears import bias_of
from graphcompress.numerics.importance import TINY, contribution, eliminate, rarely_active
from graphcompress.passes.prune.blocks import Block, Evidence
from graphcompress.passes.prune.removal import Ranking

RIDGE = 0.3
"""Strength of the ridge while units are being chosen, in units of the mean variance of the features; the fit
that is written takes the strength that held-out tokens like best."""


def rank(block: Block, evidence: Evidence | None, measure: str, *, deepest: int, z: float = 0.0) -> Ranking:
    """Units of a block by ``measure``, at most ``deepest`` of them where they are eliminated one by one.

    Without evidence they go by their weights. ``z`` is the threshold of ``xmax``.
    """
    if evidence is None or measure == "magnitude":
        # Squares make these costs energies, like those of the other measures, so that blocks can be
        # compared.
        scores = (block.norms(block.group.producers) * block.norms([block.reader])) ** 2
    elif measure == "obs":
        return _eliminated(block, evidence, deepest)
    elif measure == "xmax":
        scores = evidence.peaks[block.rows].max(axis=1)
    else:
        moments = evidence.all
        # The last row and column belong to the constant one that stands for the bias.
        second = moments.xx[:-1, :-1] / max(moments.count, 1)
        scores = contribution(second, block.reader.dense(), block.units, block.size)
    # A stable sort lets ties go by position, so that the same input removes the same units everywhere.
    order, peaks = np.argsort(scores, kind="stable")[: block.size - 1], None
    if measure == "xmax":
        # All peaks are kept, also those above z, since they tell which z would let more units go.
        peaks = scores[order] / max(float(np.std(scores)), TINY)
        order = order[rarely_active(scores, z)[order]]
    return Ranking(order, scores[order] / max(float(scores.sum()), TINY), peaks)


def _eliminated(block: Block, evidence: Evidence, count: int) -> Ranking:
    moments, weight = evidence.all, block.reader.dense()
    done = eliminate(moments.covariance, weight, block.rows, count, RIDGE)
    energy = max(moments.aimed_at(weight, bias_of(block.reader)).energy, TINY)
    return Ranking(done.order, np.diff(done.errors, prepend=0.0) / energy)
