"""Couplings: dimensions that must be cut together."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.attention import Attention
from graphcompress.analysis.attentions import attentions
from graphcompress.analysis.experts import all_experts
from graphcompress.analysis.linears import Linear, embeddings, linears
from graphcompress.analysis.residual import branches
from graphcompress.analysis.uses import OwnAxes, Use, looked_up, repeated_uses
from graphcompress.coupling.extents import block_measured
from graphcompress.coupling.relations.operators import apply
from graphcompress.coupling.relations.rules import AVERAGED, CONTRACTED, Axes, Relations, use_key
from graphcompress.files.parts import handed_on
from graphcompress.graph.expressions import expression_nodes
from graphcompress.graph.model import Model

FFN, HEAD, HIDDEN, OTHER = "ffn", "head", "hidden", "other"


@dataclass(frozen=True, eq=False)
class WeightSlice:
    """One axis of a stored tensor that a group cuts.

    Attributes:
        value: the stored tensor.
        axis: non-negative.
        units: for every index of the axis the unit it belongs to, or -1 when the group does not own it.
        uses: the readers that this holds for: all of them, or one where a stored vector is shared by parts of
            the graph that have nothing else in common.
    """

    value: ir.Value
    axis: int
    units: np.ndarray
    uses: tuple[Use, ...] = ()


@dataclass(frozen=True, eq=False)
class Group:
    """Dimensions that must be cut together.

    Attributes:
        name: stable and legible: that of the linear that produces it.
        kind: ``ffn``, ``head``, ``hidden`` or ``other``. A unit of a head group is a key/value head with the
            query heads that read it.
        size: number of units that can be removed one by one.
        exact: removing a unit equals zeroing its weights (false where a normalisation averages over units).
        slices: every stored axis that it cuts: weights, biases, scales, factors, normalisation parameters.
        producers: linears whose output columns are cut (none for the rank of a factorised weight).
        consumers: linears whose input rows are cut.
        relations, leaf: the analysis that it comes from and its atom there; for the cut.
    """

    name: str
    kind: str
    size: int
    exact: bool
    slices: tuple[WeightSlice, ...]
    producers: tuple[Linear, ...]
    consumers: tuple[Linear, ...]
    relations: Relations = field(repr=False)
    leaf: int = field(repr=False)


def couplings(model: Model) -> list[Group]:
    """Groups of the main graph that can be cut physically, in execution order of their first producer.

    A group is a class of equal atoms (see :mod:`graphcompress.coupling.atoms.unify`) that nothing blocks,
    that a weight produces, and that a weight consumes or a product of two computed values contracts.
    """
    relations = relate(model)
    survey = _Survey.of(model, relations)
    groups = [survey.group(leaf) for leaf in survey.candidates()]
    return _with_distinct_names(groups)


def relate(model: Model) -> Relations:
    """The atoms of the main graph, with what must keep its size blocked.

    Where a bias ties the heads of several attentions, it is not to: each then looks up its heads in it.
    """
    repeated = repeated_uses(model)
    relations = _related(model, repeated)
    # Only a first analysis shows which terms tie heads together; atoms cannot be pulled apart again, so the
    # graph is related anew.
    apart = looked_up(_tying_terms(relations, attentions(model)))
    return _related(model, {**apart, **repeated}) if apart else relations


def _tying_terms(relations: Relations, found: Sequence[Attention]) -> list[Use]:
    """Terms of the scores of attentions that cannot be cut one by one: heads are fixed, or tied to others'.

    Attentions that share the weight of the linear behind them are one, and stay so.
    """
    by_leaf: dict[int, list[Attention]] = defaultdict(list)
    tied: list[Attention] = []
    for attention in found:
        free = [leaf for leaf in relations.head_leaves(attention) if not relations.is_blocked(leaf)]
        (by_leaf[free[0]] if free else tied).append(attention)
    for several in by_leaf.values():
        if len({tuple(linear.weight for linear in attention.consumers) for attention in several}) > 1:
            tied.extend(several)
    return [use for attention in tied for use in attention.terms]


def _related(model: Model, own: OwnAxes) -> Relations:
    relations = Relations(model, own)
    for node in model.graph:
        apply(relations, node)
    # Which atoms a size is made of is known only once all operators have been read.
    block_measured(relations, model)
    linked = _tie_parts(relations, model)
    for value in model.graph.inputs:
        if value not in linked:
            relations.block(relations.axes(value), "it is an input of the graph")
    for value in model.graph.outputs:
        if value not in linked:
            relations.block(relations.axes(value), "it is an output of the graph")
    return relations


def _tie_parts(relations: Relations, model: Model) -> set[ir.Value]:
    """Say that what a part hands on to another, or to the next step, is the same there; those values.

    They are not the caller's: a cache may have fewer heads, and the encoder's answer another width. Its
    lengths differ from part to part and are not tied.
    """
    outputs = {value.name: value for value in model.graph.outputs}
    inputs = {value.name: value for value in model.graph.inputs}
    linked: set[ir.Value] = set()
    for source, target in handed_on(model.parts):
        given, read = outputs[source], inputs[target]
        linked |= {given, read}
        pairs = zip(relations.axes(given) or (), relations.axes(read) or (), strict=False)
        for one, other in pairs:
            if one is not None and other is not None and relations.atoms.size(one).fixed:
                relations.atoms.unify(one, other)
    return linked


@dataclass
class _Survey:
    """Which weights produce, consume and carry each leaf atom."""

    relations: Relations
    producers: dict[int, list[Linear]] = field(default_factory=lambda: defaultdict(list))
    consumers: dict[int, list[Linear]] = field(default_factory=lambda: defaultdict(list))
    made: dict[int, str] = field(default_factory=dict)
    slices: dict[int, list[WeightSlice]] = field(default_factory=lambda: defaultdict(list))
    repeated: set[int] = field(default_factory=set)
    heads: set[int] = field(default_factory=set)
    attended: set[int] = field(default_factory=set)
    residual: set[int] = field(default_factory=set)
    inner: set[int] = field(default_factory=set)

    @classmethod
    def of(cls, model: Model, relations: Relations) -> _Survey:
        survey = cls(relations)
        survey._weights(model)
        survey._stored(model)
        survey._attentions(attentions(model))
        for branch in branches(model):
            for value in branch.stream:  # an output may be declared with sizes that say nothing
                survey.residual.update(survey._leaves(relations.axes(value), -1))
        return survey

    def candidates(self) -> list[int]:
        """Leaves that make a group, in execution order of what produces them."""
        return [leaf for leaf in self.made if self._prunable(leaf)]

    def _prunable(self, leaf: int) -> bool:
        known = self.relations.atoms
        # Of a leaf that is twice a factor of one axis no index belongs to one unit, so that there is
        # nothing to cut out.
        if not known.size(leaf).fixed or known.size(leaf).number < 2 or leaf in self.repeated:
            return False
        if self.relations.is_blocked(leaf) or not self.slices[leaf]:
            return False
        if self.consumers[leaf]:
            return True
        # Without a weight that reads it, an axis may still end in a product: query and key channels in the
        # scores, the rank of a factorised weight.
        return CONTRACTED in known.marks(leaf) and (bool(self.producers[leaf]) or leaf in self.inner)

    def group(self, leaf: int) -> Group:
        """The group of a leaf."""
        return Group(
            name=self.made[leaf],
            kind=self._kind(leaf),
            size=self.relations.atoms.size(leaf).number,
            exact=AVERAGED not in self.relations.atoms.marks(leaf),
            slices=tuple(self.slices[leaf]),
            producers=tuple(self.producers[leaf]),
            consumers=tuple(self.consumers[leaf]),
            relations=self.relations,
            leaf=leaf,
        )

    def _kind(self, leaf: int) -> str:
        marks = self.relations.atoms.marks(leaf)
        # What lies inside an attention is told first, for its linears look like those of an FFN.
        if leaf in self.heads:
            return HEAD
        if leaf in self.attended or not self.producers[leaf] or not self.consumers[leaf]:
            return OTHER
        if leaf in self.residual:
            return HIDDEN
        return FFN if AVERAGED not in marks and self._feeds_a_sum(leaf) else OTHER

    def _feeds_a_sum(self, leaf: int) -> bool:
        """Whether what reads it is added to a residual stream, unlike a pooler's or a classifier's."""
        outputs = [self.relations.axes(linear.output) or [None] for linear in self.consumers[leaf]]
        return all(self.residual.intersection(self.relations.fixed_leaves(axes[-1:])) for axes in outputs)

    def _weights(self, model: Model) -> None:
        found = {linear.node: linear for linear in (*linears(model), *all_experts(model))}
        tables = {embedding.node: embedding for embedding in embeddings(model)}
        for node in model.graph:
            if node in found:
                self._linear(found[node])
            elif node in tables:
                for leaf in self._leaves(self.relations.output(node), -1):
                    self.made.setdefault(leaf, tables[node].name)
            elif (
                node.op_type == "Conv"
                and node.inputs[1] is not None
                and self.relations.constant(node.inputs[1])
            ):
                for leaf in self._leaves(self.relations.output(node), 1):
                    self.made.setdefault(leaf, _name_of(node.inputs[1]))

    def _linear(self, linear: Linear) -> None:
        axes = self.relations.axes(linear.weight)
        into, out = (1, 0) if linear.transposed else (-2, -1)
        for leaf in self._leaves(axes, into):
            self.consumers[leaf].append(linear)
        for leaf in self._leaves(axes, out):
            self.producers[leaf].append(linear)
            self.made.setdefault(leaf, linear.name)
        for node in expression_nodes(linear.weight):
            if node.op_type == "MatMul":
                self._inner(linear, node)

    def _inner(self, linear: Linear, node: ir.Node) -> None:
        """The dimension over which a factorised weight is summed."""
        for leaf in self._leaves(self.relations.operand(node, 0), -1):
            self.inner.add(leaf)
            self.made.setdefault(leaf, linear.name)

    def _leaves(self, axes: Axes | None, axis: int) -> list[int]:
        return [] if axes is None else self.relations.fixed_leaves([axes[axis]])

    def _stored(self, model: Model) -> None:
        for value, uses in _stored_uses(model):
            # Where readers have axes of their own, the stored tensor keeps those of the value, which are
            # blocked there.
            own = any(use in self.relations.own for use in uses) and len(uses) > 1
            axes = self.relations.axes(value) if own else self.relations.operand(*uses[0])
            for axis, atom in enumerate(axes or ()):
                self._slice(value, axis, atom, uses)

    def _slice(self, value: ir.Value, axis: int, atom: int | None, uses: Sequence[Use]) -> None:
        atoms = self.relations.atoms
        if atom is None:
            return
        for leaf in atoms.leaves(atom):
            if leaf not in self.made or self.relations.is_blocked(leaf):
                continue
            if atoms.is_repeated(atom, leaf):
                self.repeated.add(leaf)
            self.slices[leaf].append(WeightSlice(value, axis, atoms.units(atom, leaf), tuple(uses)))

    def _attentions(self, found: Sequence[Attention]) -> None:
        for attention in found:
            # The outermost leaf is the key/value head; further ones are query heads within its group, which
            # cannot go alone where they share keys.
            leaves = self.relations.head_leaves(attention)
            self.heads.update([leaf for leaf in leaves if not self.relations.is_blocked(leaf)][:1])
            for value in (*(operand.origin for operand in attention.operands), attention.output):
                self.attended.update(self.relations.fixed_leaves(self.relations.axes(value)))


def _name_of(value: ir.Value | None) -> str:
    return "" if value is None else value.name or ""


def _stored_uses(model: Model) -> Iterator[tuple[ir.Value, list[Use]]]:
    """Stored tensors with their readers; a shared vector comes once for every reader."""
    values = [*model.graph.initializers.values()]
    values += [node.outputs[0] for node in model.graph if node.op_type == "Constant"]
    for value in values:
        uses = [(use.node, use.idx) for use in value.uses()]
        # Such a vector has different atoms at every reader, so each reader brings a slice of its own.
        if uses and use_key(value, *uses[0]) is not value:
            yield from ((value, [use]) for use in uses)
        elif uses:
            yield value, uses


def _with_distinct_names(groups: Sequence[Group]) -> list[Group]:
    """Tell groups of the same linear (heads and their sizes) apart by a number, heads and FFN nodes first."""
    seen: dict[str, int] = defaultdict(int)
    names: dict[Group, str] = {}
    # Heads and FFN nodes get the plain name, since those are what a user asks for.
    for group in sorted(groups, key=lambda group: group.kind == OTHER):
        seen[group.name] += 1
        names[group] = group.name if seen[group.name] == 1 else f"{group.name}.{seen[group.name]}"
    return [replace(group, name=names[group]) for group in groups]
