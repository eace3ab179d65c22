"""The residual stream as one group: its normalisations, and what reads it through which of them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.experts import Experts
from graphcompress.analysis.linears import Linear
from graphcompress.coupling.couplings import Group
from graphcompress.files.parts import handed_on
from graphcompress.graph.expressions import leaves
from graphcompress.graph.match import (
    is_number,
    is_standard,
    only_reader,
    operand,
    operand_beside,
    rank_of,
    scalar,
)

_LAYOUT = frozenset(
    """
    Cast Concat Dropout Expand Gather GatherND Identity ReduceMean ReduceSum Reshape Slice Squeeze Transpose
    Unsqueeze
    """.split()  # noqa: SIM905 (one name per line would fill a page)
)
"""Operators that do the same to every feature, as long as they leave the features apart."""
_SIZES = frozenset({"Shape", "Size"})

Place = tuple[ir.Node, int]
"""An operand of a node."""


@dataclass(frozen=True, eq=False)
class Norm:
    """A normalisation of a residual stream: ``exit = gain · (entry - mean) / sqrt(variance + ε) + shift``.

    Attributes:
        entry, exit: what comes in, and what leaves after gain and shift.
        centred: whether the mean over the features is taken off (LayerNorm), or not (RMSNorm).
        gain, shift: where the stored vectors are read, or None.
        epsilon: where ε is read; None where it is an attribute of the one node.
        nodes: all that it is made of.
    """

    entry: ir.Value
    exit: ir.Value
    centred: bool
    gain: Place | None
    shift: Place | None
    epsilon: Place | None
    nodes: tuple[ir.Node, ...]


@dataclass(frozen=True, eq=False)
class Stream:
    """A residual stream.

    Attributes:
        group: all that is as wide as it.
        norms: its normalisations, in execution order.
        read: node of a linear that reads it → the norm before it, None where it reads the sum itself.
        unturned: why it cannot be rotated, or an empty text.
    """

    group: Group
    norms: tuple[Norm, ...]
    read: Mapping[ir.Node, Norm | None]
    unturned: str

    @property
    def width(self) -> int:
        """Features of every token."""
        return self.group.size


def stream_of(group: Group) -> Stream:
    """The stream whose width is ``group``."""
    walk = _Walk(group)
    walk.run()
    return Stream(group, tuple(walk.norms), walk.read, walk.unturned)


class _Walk:
    """Follows the stream through the graph, and tells the sums from what norms make of them."""

    def __init__(self, group: Group) -> None:
        self.group = group
        self.relations = group.relations
        self.norms: list[Norm] = []
        self.read: dict[ir.Node, Norm | None] = {}
        self.unturned = ""
        self._through: dict[ir.Value, Norm | None] = {}
        """What carries the stream → the norm that it comes from, None for the sum itself."""
        self._readers = {linear.node: linear for linear in group.consumers}
        self._writers = {linear.node for linear in group.producers}
        self._inside: set[ir.Node] = set()

    def run(self) -> None:
        """Look at every node once, in execution order."""
        self._weights()
        self._handed_on()
        for node in self.relations.model.graph:
            computed, out = self._carried(node, stored=False), self._carries_out(node)
            if node in self._inside or not (computed or out or self._carried(node, stored=True)):
                continue
            if is_standard(node, *_SIZES):
                continue
            norm = _fused(node) or _written_out(node)
            if norm is not None and norm.entry in self._through:
                self._normalised(norm)
            elif node in self._readers:
                self._reads(node, computed)
            elif not computed:
                # What is made of stored tables alone is a part of the sum.
                self._through.update(dict.fromkeys(node.outputs, None))
            else:
                self._passes(node, computed)
        self._shared_readers()

    def _normalised(self, norm: Norm) -> None:
        self.norms.append(norm)
        self._inside.update(norm.nodes)
        if self._through[norm.entry] is not None:
            self._unturned(norm.exit, "a normalisation reads what another one gives")
        self._through[norm.exit] = norm

    def _reads(self, node: ir.Node, computed: list[int]) -> None:
        source = node.inputs[computed[0]] if computed else None
        self.read[node] = None if source is None else self._through.get(source)
        if node in self._writers:
            self._unturned(node.outputs[0], "one linear reads and writes it")

    def _passes(self, node: ir.Node, computed: list[int]) -> None:
        """A node through which the stream goes, or what makes it unfit."""
        sources = (node.inputs[index] for index in computed)
        norms = {self._through.get(value) for value in sources if value is not None}
        if node in self._writers or (is_standard(node, "Add") and norms == {None}):
            self._through[node.outputs[0]] = None
        elif is_standard(node, "Add"):
            reason = "what a normalisation gives is added to it, and a gain does not commute with a rotation"
            self._unturned(node.outputs[0], reason)
            self._through[node.outputs[0]] = None
        elif (
            (is_standard(node, *_LAYOUT) or self._scales(node))
            and self._carries_out(node)
            and len(norms) == 1
        ):
            self._through.update(dict.fromkeys(node.outputs, norms.pop()))
        else:
            self._unturned(node.outputs[0], f"{node.op_type} works on its single features")
            self._through.update(dict.fromkeys(node.outputs, None))

    def _unturned(self, value: ir.Value, reason: str) -> None:
        self.unturned = self.unturned or f"{reason} ({value.name})"

    def _scales(self, node: ir.Node) -> bool:
        return is_standard(node, "Mul", "Div") and len(self._carried(node, stored=True)) == 1

    def _shared_readers(self) -> None:
        """Refuse one weight behind two norms: it cannot take in the gains of both."""
        gains: dict[ir.Value, set[object]] = {}
        for linear in self.group.consumers:
            norm = self.read.get(linear.node)
            vectors = () if norm is None else (norm.gain, norm.shift)
            stored = tuple(place and place[0].inputs[place[1]] for place in vectors)
            gains.setdefault(linear.weight, set()).add(stored)
            if len(gains[linear.weight]) > 1:
                self._unturned(linear.output, f"{linear.name} stands behind several normalisations")

    def _weights(self) -> None:
        """Refuse what a rotation cannot be written into."""
        for linear in (*self.group.producers, *self.group.consumers):
            if isinstance(linear, Experts):
                self.unturned = self.unturned or f"{linear.name} is a stack of experts"
            elif not linear.weight.is_initializer() and not is_tied(self.group, linear):
                self.unturned = self.unturned or f"the weight {linear.name} is an expression"
        for part in self.group.slices:
            if not np.array_equal(part.units, np.arange(self.group.size)):
                self.unturned = (
                    self.unturned or f"{part.value.name} holds more than the stream along one axis"
                )

    def _handed_on(self) -> None:
        """A part that reads the stream of another one is given what its caller has, which nobody rotates."""
        inputs = {value.name: value for value in self.relations.model.graph.inputs}
        for _, name in handed_on(self.relations.model.parts):
            if self._is_carried(self.relations.axes(inputs[name])):
                self._through[inputs[name]] = None
                self._unturned(inputs[name], "one part of the model hands it on to another")

    def _carried(self, node: ir.Node, *, stored: bool) -> list[int]:
        """Operands that carry the stream: those that are computed, or all."""
        found = (i for i in range(len(node.inputs)) if self._is_carried(self.relations.operand(node, i)))
        return [i for i in found if stored or not self.relations.constant(node.inputs[i])]

    def _carries_out(self, node: ir.Node) -> bool:
        return any(self._is_carried(self.relations.output(node, i)) for i in range(len(node.outputs)))

    def _is_carried(self, axes: object) -> bool:
        return self.group.leaf in self.relations.fixed_leaves(axes)  # type: ignore[arg-type]


def is_tied(group: Group, linear: Linear) -> bool:
    """Whether the weight of a reader is made of a table that is written into the stream elsewhere."""
    own = leaves(linear.weight)
    readers = {each.node for each in group.consumers}
    return len(own) == 1 and any(
        _writes(use.node, use.idx) for use in own[0].uses() if use.node not in readers
    )


def _writes(node: ir.Node, index: int) -> bool:
    return is_standard(node, "Gather") and index == 0


# ---- normalisations, as one node or spelt out


def _fused(node: ir.Node) -> Norm | None:
    if not is_standard(node, "LayerNormalization", "RMSNormalization") or node.inputs[0] is None:
        return None
    if node.attributes.get_int("axis", -1) not in (-1, len(node.inputs[0].shape or ()) - 1):
        return None
    centred = node.op_type == "LayerNormalization"
    shift = (node, 2) if centred and operand(node, 2) is not None else None
    return Norm(node.inputs[0], node.outputs[0], centred, (node, 1), shift, None, (node,))


def _written_out(node: ir.Node) -> Norm | None:
    """The RMSNorm that begins with the square ``node``: gain · x / sqrt(mean(x²) + ε)."""
    entry = node.inputs[0] if node.inputs else None
    mean = only_reader(node.outputs[0], "ReduceMean")
    if entry is None or not _squares(node) or mean is None:
        return None
    plus = only_reader(mean.outputs[0], "Add")
    epsilon = operand_beside(plus, mean.outputs[0])
    root = only_reader(plus.outputs[0], "Sqrt") if plus is not None else None
    if plus is None or epsilon is None or root is None or scalar(epsilon) is None:
        return None
    rest = list(_quotient(entry, root.outputs[0]))
    if not rest:
        return None
    exit_, gain = rest[-1].outputs[0], None
    last = only_reader(exit_, "Mul")
    beside = operand_beside(last, exit_)
    if last is not None and beside is not None and beside.const_value is not None and rank_of(beside) == 1:
        rest, exit_, gain = [*rest, last], last.outputs[0], (last, _index(last, beside))
    nodes = (node, mean, plus, root, *rest)
    return Norm(entry, exit_, False, gain, None, (plus, _index(plus, epsilon)), nodes)


def _quotient(entry: ir.Value, root: ir.Value) -> Iterator[ir.Node]:
    """The nodes that divide ``entry`` by ``root``, or multiply it by one over it."""
    node = only_reader(root, "Div", "Reciprocal")
    if node is None:
        return
    if node.op_type == "Div" and node.inputs[0] is entry:
        yield node
        return
    inverse = node.op_type == "Reciprocal" or (is_number(node.inputs[0], 1.0) and node.inputs[1] is root)
    product = only_reader(node.outputs[0], "Mul") if inverse else None
    if product is not None and operand_beside(product, node.outputs[0]) is entry:
        yield from (node, product)


def _squares(node: ir.Node) -> bool:
    if is_standard(node, "Mul"):
        return node.inputs[0] is node.inputs[1]
    return is_standard(node, "Pow") and is_number(node.inputs[1], 2.0)


def _index(node: ir.Node, value: ir.Value) -> int:
    return list(node.inputs).index(value)
