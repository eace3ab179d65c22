"""Blocks of zeros inside of weights that stay: not stored, or filled again."""

from __future__ import annotations

from collections.abc import Iterable

import numpy as np

from graphcompress.analysis.linears import Linear, linears
from graphcompress.graph.expressions import evaluate
from graphcompress.rewrite.rewriter import Rewriter

SPARSE_FROM = 0.95
"""Stored without its zeros, a weight must take at most this share of its bytes: the table of blocks and four
operators are not worth less."""
NOISE = 0.01
"""Standard deviation of what zeros are filled with, in those of the weight (arXiv:2109.04838)."""


def store_sparse(rw: Rewriter, names: Iterable[str], rows: int, columns: int) -> int:
    """Store the weights ``names`` without their blocks of zeros, where that is smaller.

    A block is ``rows`` · ``columns`` entries, or the other way round, whichever is smaller to store. The
    weight is then the expression
    ``Reshape(Transpose(Gather(Pad(blocks), table)))``: training it, or int8, leaves the zeros zero.

    Returns:
        How many weights are stored so.
    """
    wanted, count = set(names), 0
    for linear in linears(rw.model):
        value = linear.weight
        if value.name in wanted and value.is_initializer() and len(value.uses()) == 1:
            sizes = ((rows, columns), (columns, rows))
            stored = [made for size in sizes if (made := _blocks(evaluate(value), *size)) is not None]
            if stored:
                _write(rw, linear, *min(stored, key=lambda made: made[0].size))
                count += 1
    return count


def _blocks(array: np.ndarray, rows: int, columns: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Blocks [n, rows, columns] that are not zero, and the table [·, ·] of their numbers, n for zeros."""
    if array.shape[0] % rows or array.shape[1] % columns:
        return None
    grid = array.reshape(array.shape[0] // rows, rows, array.shape[1] // columns, columns).swapaxes(1, 2)
    there = grid.any(axis=(2, 3))
    count = int(there.sum())
    table = np.full(there.shape, count, np.int32)
    table[there] = np.arange(count)
    if not count or grid[there].nbytes + table.nbytes > SPARSE_FROM * array.nbytes:
        return None
    return grid[there], table


def _write(rw: Rewriter, linear: Linear, blocks: np.ndarray, table: np.ndarray) -> None:
    old = linear.weight
    dtype, name = old.dtype, old.name or linear.name
    b = rw.at(linear.node, name)
    kept = rw.constant(blocks, f"{name}.blocks", dtype)
    padded = b.op("Pad", kept, [0, 0, 0, 1, 0, 0], name="padded")
    grid = b.op("Gather", padded, b.constant(table, "table"), name="grid", axis=0)
    moved = b.op("Transpose", grid, name="moved", perm=[0, 2, 1, 3])
    whole = b.op(
        "Reshape",
        moved,
        [linear.out_features, linear.in_features][:: 1 if linear.transposed else -1],
        name="dense",
    )
    if linear.transposed:
        rw.set_input(linear.node, 1, whole)
    else:
        rw.set_weight(linear, whole)


def fill(rw: Rewriter, names: Iterable[str], seed: int) -> int:
    """Give the zeros of the weights ``names`` the mean of the weight and some noise; how many there were.

    What went as a whole is not filled again. A weight of zeros alone gets the noise of weights that begin at
    random: queries and keys that are both zero would have no gradient.
    """
    rng = np.random.default_rng(seed)
    filled = 0
    for name in (name for name in names if name in rw.model.graph.initializers):
        value = rw.model.graph.initializers[name]
        array = evaluate(value).astype(np.float32)
        zeros = array == 0
        filled += int(zeros.sum())
        spread = float(array.std()) or max(array.shape) ** -0.5
        array[zeros] = array.mean() + NOISE * spread * rng.standard_normal(int(zeros.sum()))
        rw.overwrite(value, array)
    return filled
