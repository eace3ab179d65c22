"""Puts the FFN nodes of every expert in order of their weight, so that each loses its own."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.experts import Experts
from graphcompress.analysis.linears import Linear
from graphcompress.coupling.couplings import Group, WeightSlice
from graphcompress.coupling.relations.operators import ELEMENTWISE
from graphcompress.graph.match import axis_of, fixed_shape, is_standard, shape_of, slice_ranges
from graphcompress.graph.sizes import same_shape
from graphcompress.numerics.importance import rows_of, unit_norms
from graphcompress.rewrite.rewriter import Rewriter


@dataclass
class Alignment:
    """Weights that were put into another order, and how they were."""

    before: dict[ir.Value, ir.TensorProtocol] = field(default_factory=dict)

    def undo(self) -> None:
        """Put the weights back."""
        for value, tensor in self.before.items():
            value.const_value = tensor


def align(rw: Rewriter, group: Group, reader: Linear) -> Alignment:
    """Order the nodes of every expert, a ``group`` that ``reader`` reads, by the norm of their weights.

    The largest comes first. Exact: a node of one expert meets no node of another. Nothing is done where that
    is not seen, or where a node has something that all experts share.
    """
    done = Alignment()
    slices = _stacks(group)
    if not slices:
        return done
    order = np.argsort(-_norms(group, reader, slices), axis=1, kind="stable")
    for part in slices:
        tensor = part.value.const_value
        if tensor is None:
            continue
        done.before.setdefault(part.value, tensor)
        rw.overwrite(part.value, _ordered(tensor.numpy(), part, order))
    return done


def _stacks(group: Group) -> list[WeightSlice]:
    """What every expert has of the nodes; nothing where experts cannot be ordered one by one."""
    linears = [each for each in (*group.producers, *group.consumers) if isinstance(each, Experts)]
    slices = [part for part in group.slices if part.value.const_value is not None]
    sizes = [fixed_shape(part.value) or () for part in slices]
    whole = len(linears) == len(group.producers) + len(group.consumers) and len(slices) == len(group.slices)
    if not whole or any(len(shape) < 2 or shape[0] != linears[0].experts for shape in sizes):
        return []
    if any(part.axis == 0 or not _equal_parts(part.units) for part in slices):
        return []
    return slices if _same_experts(group, linears, slices) and _stay_apart(group) else []


def _equal_parts(units: np.ndarray) -> bool:
    """Whether every unit owns as many indices as any other, as a gate and a value in one stack do."""
    return len(set(np.bincount(units[units >= 0]).tolist())) == 1


def _same_experts(group: Group, linears: Sequence[Experts], slices: Sequence[WeightSlice]) -> bool:
    """Whether all stacks mean the same expert: one index looks all of them up, or one axis is theirs."""
    indices = {None if each.lookup is None else each.lookup.inputs[1] for each in linears}
    if len(indices) != 1:
        return False
    (index,) = indices
    if index is not None:
        readers = [use.node for part in slices for use in part.value.uses()]
        return all(is_standard(node, "Gather") and node.inputs[1] is index for node in readers)
    axes = [(group.relations.axes(part.value) or [None])[0] for part in slices]
    return len({None if axis is None else group.relations.atoms.root(axis) for axis in axes} - {None}) == 1


def _stay_apart(group: Group) -> bool:
    """Whether nothing between the producers and the readers mixes nodes, experts or rows."""
    ends = {each.node for each in group.consumers}
    pending = [each.node.outputs[0] for each in group.producers]
    seen: set[ir.Value] = set()
    while pending:
        value = pending.pop()
        if value in seen:
            continue
        seen.add(value)
        readers = {use.node for use in value.uses()} - ends
        if value.is_graph_output() or not all(map(_is_apart, readers)):
            return False
        pending.extend(output for node in readers for output in node.outputs)
    return True


def _is_apart(node: ir.Node) -> bool:
    """Whether ``node`` computes each place by itself, selects along the last axis, or adds axes of size 1."""
    if is_standard(node, *ELEMENTWISE, "Squeeze", "Unsqueeze"):
        return True
    before, after = shape_of(node.inputs[0]), shape_of(node.outputs[0])
    if before is None or after is None:
        return False
    if is_standard(node, "Reshape"):
        wide = [[size for size in shape if size != 1] for shape in (before, after)]
        return same_shape(*wide)
    last = len(before) - 1
    if is_standard(node, "Split"):
        return axis_of(node, len(before), 0) == last
    ranges = slice_ranges(node) if is_standard(node, "Slice") else None
    return ranges is not None and set(ranges) == {last}


def _norms(group: Group, reader: Linear, slices: Sequence[WeightSlice]) -> np.ndarray:
    """[experts, units] norm of what a node has in the weights that make it, times that in its reader's."""
    made, read = (
        sum(_squares(part, group.size) for part in slices if (part.value is reader.weight) == is_reader)
        for is_reader in (False, True)
    )
    norms: np.ndarray = np.sqrt(made * read)
    return norms


def _squares(part: WeightSlice, size: int) -> np.ndarray:
    """[experts, units] sum of squares of what every unit of every expert owns in a stack."""
    tensor = part.value.const_value
    stack: list[np.ndarray] = [] if tensor is None else list(tensor.numpy())
    return np.stack([unit_norms(each, part.axis - 1, part.units, size) ** 2 for each in stack])


def _ordered(stack: np.ndarray, part: WeightSlice, order: np.ndarray) -> np.ndarray:
    """``stack`` with the units of every expert in its own ``order`` [experts, units]."""
    rows = rows_of(part.units)
    index = np.tile(np.arange(len(part.units)), (len(stack), 1))
    for expert, mine in enumerate(order):
        index[expert, rows.ravel()] = rows[mine].ravel()
    shape = [1] * stack.ndim
    shape[0], shape[part.axis] = index.shape
    return np.take_along_axis(stack, index.reshape(shape), axis=part.axis)
