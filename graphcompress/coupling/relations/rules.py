"""Runs the rules of all operators over a graph: which axes of which values are the same."""

from __future__ import annotations

from collections.abc import Iterable

import onnx_ir as ir

from graphcompress.analysis.attention import Attention
from graphcompress.analysis.uses import OwnAxes
from graphcompress.coupling.atoms.store import BLOCKED
from graphcompress.coupling.atoms.unify import Atoms
from graphcompress.graph.expressions import Constants
from graphcompress.graph.model import Model
from graphcompress.graph.sizes import ONE, size_of

AVERAGED = "averaged"
"""Mark: a normalisation or a mean runs over it, so that removing a unit is not the same as zeroing it."""
CONTRACTED = "contracted"
"""Mark: a MatMul of two computed values, or of two constants (the rank of a factorisation), sums over it."""

Axes = list[int | None]
"""One atom for every axis of a value; None for an axis of size 1."""

Elements = list[frozenset[int]]
"""For every element of an integer vector (one for a scalar) the atoms whose sizes it is made from."""


class Relations:
    """The atoms of every axis of every value of a model.

    A stored vector that several nodes read (a bias of zeros that was stored once) stands for several axes:
    nothing but its storage is shared, so each use has atoms of its own. So have single axes of some readers.

    Attributes:
        own: reader → axes of what it reads that are its own (:mod:`graphcompress.analysis.uses`).
    """

    def __init__(self, model: Model, own: OwnAxes | None = None) -> None:
        self.model = model
        self.own = own or {}
        self.atoms = Atoms()
        self.measured: dict[ir.Value, Elements] = {}
        """Integer values that the graph computes from the sizes of atoms."""
        self._axes: dict[ir.Value | tuple[ir.Value, ir.Node, int], Axes | None] = {}
        self.constant = Constants()

    def axes(self, value: ir.Value) -> Axes | None:
        """Atoms of the axes of ``value``, or None when its rank is not known."""
        return self._known(value, value)

    def operand(self, node: ir.Node, index: int) -> Axes | None:
        """Atoms of the axes of an input of ``node``; None when it is absent or its rank is not known."""
        value = node.inputs[index] if index < len(node.inputs) else None
        if value is None:
            return None
        key = use_key(value, node, index)
        if key is value and (node, index) in self.own:
            return self._partly_own(value, node, index)
        return self._known(key, value)

    def output(self, node: ir.Node, index: int = 0) -> Axes | None:
        """Atoms of the axes of an output of ``node``."""
        return self.axes(node.outputs[index]) if index < len(node.outputs) else None

    def block(self, axes: Iterable[int | None] | None, reason: str) -> None:
        """Say that nothing may be cut from ``axes``."""
        self.atoms.block(axes or (), reason)

    def block_node(self, node: ir.Node, reason: str) -> None:
        """Say that nothing may be cut from any operand or result of ``node``."""
        for index in range(len(node.inputs)):
            self.block(self.operand(node, index), reason)
        for index in range(len(node.outputs)):
            self.block(self.output(node, index), reason)

    def unify(self, left: Axes | None, right: Axes | None) -> None:
        """Say that two lists of axes of the same length are the same one by one."""
        for one, other in zip(left or (), right or (), strict=True):
            self.atoms.unify(one, other)

    def broadcast(self, operand: Axes | None, out: Axes | None) -> None:
        """Say that trailing axes are the same where both are longer than 1."""
        for one, other in zip(reversed(operand or ()), reversed(out or ()), strict=False):
            self.atoms.unify(one, other)

    def fixed_leaves(self, atoms: Iterable[int | None] | None) -> list[int]:
        """Leaf atoms of fixed size in ``atoms``, from left to right."""
        found: dict[int, None] = {}
        for atom in atoms or ():
            if atom is not None:
                found.update(
                    dict.fromkeys(leaf for leaf in self.atoms.leaves(atom) if self.atoms.size(leaf).fixed)
                )
        return list(found)

    def head_leaves(self, attention: Attention) -> list[int]:
        """Leaves over which an attention is repeated, outermost first: heads, or groups of heads."""
        axes = self.axes(attention.output) or []
        # Between the two products heads are an axis before [queries, size]; an operator that merges them
        # has them in the last.
        joined = attention.scoring is None and len(axes) != 4  # an operator may merge the heads itself
        return self.fixed_leaves(axes[-1:] if joined else axes[:-2])

    def is_blocked(self, leaf: int) -> bool:
        """Whether nothing may be cut from a leaf."""
        return BLOCKED in self.atoms.marks(leaf)

    def _known(self, key: ir.Value | tuple[ir.Value, ir.Node, int], value: ir.Value) -> Axes | None:
        if key not in self._axes:
            self._axes[key] = self._fresh(value)
        return self._axes[key]

    def _partly_own(self, value: ir.Value, node: ir.Node, index: int) -> Axes | None:
        """The atoms of ``value``, but fresh ones for the axes that are the reader's own."""
        key = (value, node, index)
        if key not in self._axes:
            shared, fresh = self.axes(value), self._fresh(value)
            if shared is None or fresh is None:
                return None
            own = self.own[node, index]
            self._axes[key] = [
                new if axis in own else old for axis, (old, new) in enumerate(zip(shared, fresh, strict=True))
            ]
            # The stored tensor itself keeps its size: readers take what they need out of it.
            self.atoms.block([shared[axis] for axis in own], "its readers look up in it what they need")
        return self._axes[key]

    def _fresh(self, value: ir.Value) -> Axes | None:
        if value.shape is None:
            return None
        sizes = [size_of(dim) for dim in value.shape]
        # An axis of size 1 broadcasts against anything, so it must not tie two axes together.
        return [None if size == ONE else self.atoms.new(size) for size in sizes]


def use_key(value: ir.Value, node: ir.Node, index: int) -> ir.Value | tuple[ir.Value, ir.Node, int]:
    """What the atoms of a use are filed under: the value, or the use itself of a vector that has several."""
    if value.is_initializer() and len(value.uses()) > 1 and is_vector(value) and not value.is_graph_input():
        return value, node, index
    return value


def is_vector(value: ir.Value) -> bool:
    """Whether at most one axis of a value is longer than 1."""
    return value.shape is not None and sum(dim != 1 for dim in value.shape) <= 1
