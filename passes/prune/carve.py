"""Carries removals out: refitted weights are written, units are cut; a block without any is passed by."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from graphcompress.analysis.linears import bias_of
from graphcompress.cutting.cut import cut
from graphcompress.numerics.least_squares import LinearMap
from graphcompress.passes.prune.blocks import Block
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
            _pass_by(rw, removal)


def vanishes(block: Block) -> bool:
    """Whether a block may go as a whole: what its readers give is only added to a residual stream."""
    for reader in block.readers:
        uses = tuple(reader.output.uses())
        if reader.output.is_graph_output() or len(uses) != 1 or uses[0].node.op_type != "Add":
            return False
        other = uses[0].node.inputs[1 - uses[0].idx]
        if other is None or other.shape is None or other.shape != reader.output.shape:
            return False
    return True


def _pass_by(rw: Rewriter, removal: Removal) -> None:
    """What is added to the stream in place of the block is the mean of what it gave."""
    block = removal.block
    bias = bias_of(block.reader) if removal.fit is None else removal.fit.bias
    for reader in block.readers:
        dtype = reader.output.dtype
        constant = rw.constant(bias.astype(np.float32), f"{reader.name}.mean", dtype)
        for use in tuple(reader.output.uses()):
            rw.set_input(use.node, use.idx, constant)
    rw.clean()
