"""Carries removals out: refitted weights are written, units are cut; a block without any is passed by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphcompress.analysis.linears import bias_of
from graphcompress.cutting.cut import cut
from graphcompress.cutting.stand_in import stand_in
from graphcompress.numerics.least_squares import LinearMap
from graphcompress.passes.prune.removal import Removal
from graphcompress.rewrite.bias import write_bias, write_fit
from graphcompress.rewrite.rewriter import Rewriter


def carve(rw: Rewriter, removals: Sequence[Removal]) -> None:
    """Do what ``removals`` say; of a block that loses all units only a constant is left."""
    for removal in removals:
        block, fit = removal.block, removal.fit
        if fit is not None and block.can_refit and removal.keep.any():
            dense = block.reader.dense().astype(np.float64)
            dense[removal.rows] = fit.weight
            write_fit(rw, block.readers, LinearMap(dense, fit.bias))
        elif fit is not None and removal.keep.any():
            write_bias(rw, block.readers, fit.bias)
    cut(rw, {each.block.group: each.keep for each in removals if each.keep.any()})
    for removal in removals:
        if not removal.keep.any():
            fit, readers = removal.fit, removal.block.readers
            stand_in(rw, readers, bias_of(removal.block.reader) if fit is None else fit.bias)
