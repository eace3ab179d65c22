"""Units that give nothing: which weights have to be zero for that, and which are."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.experts import Experts
from graphcompress.analysis.linears import Linear
from graphcompress.coupling.couplings import Group
from graphcompress.graph.expressions import evaluate

_LAYOUT = frozenset(
    """
    Cast Dropout Expand Flatten Gather Identity Reshape Slice Split Squeeze Tile Transpose Unsqueeze
    """.split()  # noqa: SIM905 (one name per line would fill a page)
)
_ZERO_AT_ZERO = frozenset(
    """
    Abs Ceil Celu Div Elu Erf Floor Gelu HardSwish LeakyRelu Mish Neg PRelu Relu Round Selu Shrink Sign Sin
    Softsign Sqrt Swish Tanh ThresholdedRelu
    """.split()  # noqa: SIM905
)
"""Operators that give zero where their first operand is zero."""
_PRODUCTS = frozenset({"Mul", "MatMul"})
_SUMS = frozenset({"Add", "Sub", "Sum", "Concat"})
_VALUES = 2
"""Input of the operator Attention that holds the values."""


@dataclass(frozen=True, eq=False)
class Inner:
    """A linear of a group, and the units along its inner axis: its outputs, or its inputs where it reads.

    Attributes:
        linear: the linear.
        axis: of the weight as it is stored.
        units: for every index along it the unit, or -1.
        reads: whether it reads the units, rather than make them.
        silences: whether the readers get zero from a unit of which this linear stores nothing but zeros.
    """

    linear: Linear
    axis: int
    units: np.ndarray
    reads: bool
    silences: bool


def inner_linears_of(group: Group) -> list[Inner]:
    """The linears of a group, those that make its units first; of those that share their weight the first."""
    found: dict[ir.Value, Inner] = {}
    for linear in (*group.producers, *group.consumers):
        reads = linear in group.consumers
        # A stack of experts [experts, in, out] has its own axis in front.
        axis = (int(linear.transposed) ^ int(not reads)) + int(isinstance(linear, Experts))
        axes = group.relations.axes(linear.weight)
        atom = None if axes is None else axes[axis]
        if atom is None or linear.weight in found:
            continue
        units = group.relations.atoms.units(atom, group.leaf)
        found[linear.weight] = Inner(linear, axis, units, reads, _silences(group, linear))
    return list(found.values())


def _silences(group: Group, linear: Linear) -> bool:
    """Whether zeros in the weight and bias of ``linear`` arrive as zeros at, or behind, all readers."""
    if linear in group.consumers:
        return len({reader.weight for reader in group.consumers}) == 1
    same = [each for each in group.producers if each.weight is linear.weight]
    # Zeros of one bias say nothing of another one.
    if any(each.bias is not linear.bias for each in same):
        return False
    zero = {each.output for each in same}
    for node in group.relations.model.graph:
        if not zero.intersection(node.outputs) and _gives_zero(node, zero):
            zero.update(value for value in node.outputs if carries(group, value))
    return bool(group.consumers) and all(reader.input in zero for reader in group.consumers)


def carries(group: Group, value: ir.Value) -> bool:
    """Whether the units of a group can be told apart in ``value``."""
    return group.leaf in group.relations.fixed_leaves(group.relations.axes(value))


def _gives_zero(node: ir.Node, zero: set[ir.Value]) -> bool:
    """Whether the output of ``node`` is zero at a unit at which the values ``zero`` are."""
    if node.domain or not any(value in zero for value in node.inputs):
        return False
    kind, first = node.op_type, node.inputs[0]
    if kind in _LAYOUT or kind in _ZERO_AT_ZERO:
        return first in zero
    if kind in _PRODUCTS:
        return True
    if kind == "Where":
        return all(_is_zero(value, zero) for value in node.inputs[1:])
    if kind == "Attention":
        return node.inputs[_VALUES] in zero
    return kind in _SUMS and all(_is_zero(value, zero) for value in node.inputs)


def _is_zero(value: ir.Value | None, zero: set[ir.Value]) -> bool:
    if value is None or value in zero:
        return True
    stored = value.const_value
    return stored is not None and not value.is_graph_input() and not stored.numpy().any()


def silent_units(group: Group) -> np.ndarray:
    """[units] whether what every unit gives is zero in every run, or read by nobody.

    A head without values or without rows in the output's weight gives nothing. One without queries or keys
    does: it attends to all tokens alike.
    """
    silent = np.zeros(group.size, bool)
    for inner in inner_linears_of(group):
        if inner.silences:
            silent |= ~units_with(inner, used_indices(inner), group.size)
    return silent


def used_indices(inner: Inner) -> np.ndarray:
    """[inner axis] whether the weight of a linear holds anything but zeros at an index along that axis."""
    weight = evaluate(inner.linear.weight)
    others = tuple(axis for axis in range(weight.ndim) if axis != inner.axis)
    return np.asarray(np.any(weight, axis=others))


def units_with(inner: Inner, used: np.ndarray, size: int) -> np.ndarray:
    """[units] whether any index of a unit is ``used`` [inner axis], or has a bias that is not zero."""
    bias = None if inner.reads else inner.linear.bias
    if bias is not None:
        used = used | (evaluate(bias).reshape(-1) != 0)
    return some_of_units(inner.units, used, size)


def some_of_units(units: np.ndarray, used: np.ndarray, size: int) -> np.ndarray:
    """[size] whether any of the indices of a unit is ``used``; ``units`` says which unit each belongs to."""
    found = np.zeros(size, bool)
    found[units[used & (units >= 0)]] = True
    return found
