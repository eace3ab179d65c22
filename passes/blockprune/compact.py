"""What gives nothing is cut, with equal outputs: masked and compact models answer the same."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.experts import Experts
from graphcompress.analysis.linears import Linear, bias_of, linears
from graphcompress.coupling.couplings import FFN, HEAD, Group, couplings
from graphcompress.coupling.ends import is_zeroing
from graphcompress.cutting.cut import cut
from graphcompress.cutting.silence import inner_linears_of, silent_units, some_of_units, used_indices
from graphcompress.cutting.stand_in import may_be_empty, stand_in
from graphcompress.graph.expressions import Constants, evaluate
from graphcompress.graph.model import Model
from graphcompress.plugin.context import Context
from graphcompress.rewrite.bias import write_bias
from graphcompress.rewrite.rewriter import Rewriter

NOUNS = {FFN: "FFN nodes", HEAD: "heads"}


def compact(rw: Rewriter) -> dict[str, int]:
    """Cut the heads and FFN nodes of the model of ``rw`` that give zero, or the same in every run.

    What an FFN node without input gives goes into the bias of what reads it. A head without queries or keys
    attends to all tokens alike, which is something, so it stays. Where no unit gives anything, the biases of
    what reads them stand for its results; one unit stays where more than sums read these, and for a cache.

    Returns:
        Kind → units that went.
    """
    groups = [group for group in couplings(rw.model) if group.kind in NOUNS and is_zeroing(group)]
    emptiable = may_be_empty(groups)
    keeps: dict[Group, np.ndarray] = {}
    emptied: list[Group] = []
    gone: dict[str, int] = {}
    for group in groups:
        silent = silent_units(group)
        constant = _constant_units(group) & ~silent
        if (silent | constant).all() and group not in emptiable:
            constant[0] = False  # This one stays, and gives what it gives.
        keep = ~silent
        if constant.any() and _fold(rw, group, constant):
            keep &= ~constant
        left = int(keep.sum())
        if not left and group in emptiable:
            emptied.append(group)
        elif not left:
            left = 1
        keep[0] |= not keep.any()  # no axis may be empty
        keeps[group] = keep
        if left < group.size:
            gone[group.kind] = gone.get(group.kind, 0) + group.size - left
    cut(rw, keeps)
    now = {linear.node: linear for linear in linears(rw.model)}  # folding may have given them another bias
    for reader in (now[reader.node] for group in emptied for reader in group.consumers):
        stand_in(rw, [reader], bias_of(reader))
    return gone


def _constant_units(group: Group) -> np.ndarray:
    """[units] of FFN nodes those that no input reaches: they are what their biases make of them.

    None of experts: what such a node gives would go into a bias of its reader, which experts have not.
    """
    if group.kind != FFN or any(isinstance(reader, Experts) for reader in group.consumers):
        return np.zeros(group.size, bool)
    fed = np.zeros(group.size, bool)
    for inner in inner_linears_of(group):
        if not inner.reads:
            fed |= some_of_units(inner.units, used_indices(inner), group.size)
    return ~fed


def _fold(rw: Rewriter, group: Group, units: np.ndarray) -> bool:
    """Put what constant ``units`` give into the biases of what reads them; whether that is known."""
    given = _values(rw.model, group)
    if given is None:
        return False
    by_weight: dict[ir.Value, list[Linear]] = {}
    for reader in group.consumers:
        by_weight.setdefault(reader.weight, []).append(reader)
    for inner in (inner for inner in inner_linears_of(group) if inner.reads):
        readers = by_weight[inner.linear.weight]
        features = (inner.units >= 0) & units[inner.units]
        gain = given[features].astype(np.float64) @ inner.linear.dense()[features]
        before = 0.0 if readers[0].bias is None else evaluate(readers[0].bias).reshape(-1)
        write_bias(rw, readers, np.broadcast_to(before + gain, gain.shape))
    return True


def _values(model: Model, group: Group) -> np.ndarray | None:
    """[features] what the readers of a group see where no input reaches it; None where that is not constant.

    In a copy of the graph every producer gives its bias alone.
    """
    twin = model.clone()
    found = {linear.node.name: linear for linear in linears(twin)}
    rw = Rewriter(twin, Context())
    for producer in group.producers:
        mine = found[producer.node.name]
        bias = np.zeros(mine.out_features) if mine.bias is None else evaluate(mine.bias).reshape(-1)
        rank = 2 if mine.output.shape is None else len(mine.output.shape)
        array = bias.reshape([1] * (rank - 1) + [-1]).astype((mine.output.dtype or ir.DataType.FLOAT).numpy())
        rw.replace(mine.output, rw.constant(array, "without_input"))
    # Shapes tell of the tokens that came in; with them no value would count as the same in every run.
    for value in (value for node in twin.graph for value in node.outputs):
        value.shape = None
    inputs = [found[reader.node.name].node.inputs[0] for reader in group.consumers]
    if not all(map(Constants(), inputs)):
        return None
    arrays = [evaluate(value).reshape(-1) for value in inputs if value is not None]
    return arrays[0] if all(np.array_equal(arrays[0], other) for other in arrays) else None
