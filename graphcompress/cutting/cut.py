"""The physical cut of groups."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.uses import repeated_axes
from graphcompress.coupling.couplings import Group
from graphcompress.coupling.extents import target_elements
from graphcompress.coupling.relations.rules import Axes, Relations
from graphcompress.cutting.remaining import Remaining
from graphcompress.files.declared import Dim
from graphcompress.graph.match import fixed_shape, fixed_size, producer, slice_ranges
from graphcompress.graph.model import Model
from graphcompress.graph.sizes import ONE, reshape_target
from graphcompress.rewrite.rewriter import Rewriter

_TO_THE_END = int(np.iinfo(np.int64).max)
"""ONNX spells "to the end" as the largest integer: a bound beyond the axis is clamped to its size."""


def cut(rw: Rewriter, cuts: Mapping[Group, np.ndarray]) -> None:
    """Remove the units of each group where its mask ``keep`` [size] is False, everywhere in the graph.

    Call it once for all groups: groups describe the graph as it was when ``couplings`` saw it, so they are
    void afterwards. Stored slices are cut in place, and Reshape targets, Split sizes and their like follow.
    ``Model.kept`` records what is left. At least one unit of each group stays.

    Raises:
        ValueError: a mask has the wrong length or keeps nothing, or groups come from different analyses.
    """
    wanted = {group: np.asarray(keep, dtype=bool) for group, keep in cuts.items()}
    for group, keep in wanted.items():
        _check(group, keep)
    wanted = {group: keep for group, keep in wanted.items() if not keep.all()}
    if not wanted:
        return
    # Atoms are numbered within one analysis, so the same number means another axis in another one.
    if len({id(group.relations) for group in wanted}) > 1:
        raise ValueError(
            "groups of different analyses cannot be cut together; call couplings once for all of them"
        )
    _Cut(rw, wanted).run()


def _check(group: Group, keep: np.ndarray) -> None:
    if keep.shape != (group.size,):
        raise ValueError(
            f"group {group.name!r} has {group.size} units, the mask has shape {list(keep.shape)}"
        )
    if not keep.any():
        raise ValueError(f"group {group.name!r}: the mask keeps nothing; at least one unit must stay")


class _Cut:
    """One cut of several groups of one analysis."""

    def __init__(self, rw: Rewriter, cuts: Mapping[Group, np.ndarray]) -> None:
        self.rw = rw
        self.cuts = cuts
        self.relations: Relations = next(iter(cuts)).relations
        self.remaining = Remaining(self.relations, {group.leaf: keep for group, keep in cuts.items()})
        self._copies: dict[tuple[object, ...], ir.Value] = {}

    def run(self) -> None:
        """Rewrite constants of shape first, then the stored tensors."""
        # The edits below insert nodes, which must not be visited themselves.
        nodes = list(self.rw.model.graph)
        self._record(nodes)
        for node in nodes:
            edit = _EDITS.get(node.op_type)
            # Only the standard domain is meant: a custom operator of the same name may give its inputs
            # another meaning.
            if edit is not None and not node.domain and self._touches(node):
                edit(self, node)
        for node, index in self.relations.own:
            self._give_its_own(node, index)
        self._cut_stored()
        self._resize_interface()
        self.rw.modified = True

    def _touches(self, node: ir.Node) -> bool:
        operands = (self.relations.operand(node, index) for index in range(len(node.inputs)))
        results = (self.relations.output(node, index) for index in range(len(node.outputs)))
        return self._counts_units(node) or any(self.remaining.changes(axes) for axes in (*operands, *results))

    def _counts_units(self, node: ir.Node) -> bool:
        """Whether ``node`` reads a number that the graph computes from a size that is cut."""
        measured = self.relations.measured
        elements = (parts for value in node.inputs if value for parts in measured.get(value, ()))
        return any(self.remaining.changes(parts) for parts in elements)

    # ---- edits of nodes

    def reshape(self, node: ir.Node) -> None:
        """Write the target anew."""
        source, target = node.inputs[0], node.outputs[0]
        if source is None or source.shape is None or target.shape is None:
            return
        before = self.remaining.shape(self.relations.operand(node, 0), source.shape)
        after = self.remaining.shape(self.relations.output(node), target.shape)
        numbers = reshape_target(before, after)
        if numbers is None:
            # No target of constants says the new shape, so the one that the graph computes is corrected.
            self._patch(node, self.relations.output(node) or [], after)
            return
        self.rw.set_input(node, 1, self._numbers(numbers, node))
        self.rw.set_attribute(node, "allowzero", None)  # a 0 copies

    def expand(self, node: ir.Node) -> None:
        """Put the new sizes into the target."""
        target, axes = node.outputs[0], self.relations.output(node) or []
        if target.shape is not None:
            self._patch(node, axes, self.remaining.shape(axes, target.shape))

    def split(self, node: ir.Node) -> None:
        """Write the sizes of the parts."""
        axis = node.attributes.get_int("axis", 0)
        parts = [self.relations.output(node, index) or [] for index in range(len(node.outputs))]
        if not self._counts_units(node) and not self.remaining.changes([part[axis] for part in parts]):
            return
        sizes = self._numbers([self.remaining.after(part[axis]) for part in parts], node)
        # The specification allows sizes or num_outputs, never both, and equal parts need not stay equal.
        self.rw.set_attribute(node, "num_outputs", None)
        self.rw.set_input(node, 1, sizes)

    def slice(self, node: ir.Node) -> None:
        """Move the bounds to where they are after the cut."""
        source = self.relations.operand(node, 0) or []
        ranges = slice_ranges(node) or {}
        if not self._counts_units(node) and not self.remaining.changes([source[axis] for axis in ranges]):
            return
        moved = {axis: self._moved(source[axis], bounds) for axis, bounds in ranges.items()}
        starts = [start for start, _, _ in moved.values()]
        stops = [_TO_THE_END if stop is None else stop for _, stop, _ in moved.values()]
        steps = [step for _, _, step in moved.values()]
        for index, numbers in enumerate((starts, stops, list(moved), steps), start=1):
            self.rw.set_input(node, index, self._numbers(numbers, node))

    def _moved(self, atom: int | None, bounds: tuple[int, int | None, int]) -> tuple[int, int | None, int]:
        index = None if atom is None else self.remaining.index(atom)
        if atom is None or index is None:
            return bounds
        # Python's own slice turns negative and open bounds into positions, which alone can be counted among
        # those left.
        start, stop, step = slice(*bounds).indices(self.relations.atoms.size(atom).number)
        return int((index < start).sum()), int((index < stop).sum()), step

    def attention(self, node: ir.Node) -> None:
        """Write the numbers of heads, where they are attributes."""
        for name, index in (("q_num_heads", 0), ("kv_num_heads", 1), ("num_heads", 0)):
            heads = node.attributes.get_int(name, 0)
            axes = self.relations.operand(node, index)
            # With inputs of four axes the operator carries no such attribute: the head is an axis of its
            # own then.
            if heads and axes and axes[-1] is not None:
                self.rw.set_attribute(node, name, self._heads_after(axes[-1], heads))

    def _heads_after(self, width: int, heads: int) -> int:
        """Heads of which anything is left, in an axis of ``heads`` equal parts."""
        # A unit may be one channel of a head, so a head counts until its last channel is gone.
        index = self.remaining.index(width)
        size = self.relations.atoms.size(width).number // heads
        return heads if index is None else len(np.unique(index // size))

    # ---- readers that have axes of their own

    def _give_its_own(self, node: ir.Node, index: int) -> None:
        """Let one reader of a shared value read what it needs of it."""
        value, axes = node.inputs[index], self.relations.operand(node, index) or []
        # A value that is broadcast along an axis has one size for several readers, so each is given its own
        # part of it.
        own = {axis: axes[axis] for axis in sorted(self.relations.own[node, index])}
        producer = None if value is None else value.producer()
        # An Expand is asked for another size at its source: to gather from its result would need it in full
        # first.
        if producer is not None and producer.op_type == "Expand" and repeated_axes(producer):
            elements = target_elements(self.relations, producer.inputs[1], len(axes))
            measured = [atom for axis in own for atom in elements[axis]]
            if self.remaining.changes([*own.values(), *measured]):
                self.rw.set_input(node, index, self._expanded(producer, axes))
            return
        for axis, atom in own.items():
            kept = None if atom is None else self.remaining.index(atom)
            if atom is None or kept is None or value is None:
                continue
            if self.relations.atoms.size(atom).fixed:
                value = self._looked_up(node, value, axis, kept)
            else:
                value = self._looked_up_within(node, value, axis, atom)
        self.rw.set_input(node, index, value)

    def _looked_up(self, node: ir.Node, value: ir.Value, axis: int, kept: np.ndarray) -> ir.Value:
        numbers = self._numbers(kept.tolist(), node)
        return self.rw.at(node, value.name).op("Gather", value, numbers, name="kept", axis=axis)

    def _looked_up_within(self, node: ir.Node, value: ir.Value, axis: int, atom: int) -> ir.Value:
        """Look up in an axis that is a product with a variable size: batch · heads becomes two axes."""
        atoms, b = self.relations.atoms, self.rw.at(node, value.name)
        factors = atoms.leaves(atom)
        sizes = [atoms.size(factor).number if atoms.size(factor).fixed else -1 for factor in factors]
        shape = b.op("Shape", value, name="shape")
        bounds = ([0], [axis], [axis + 1], [_TO_THE_END])
        start, here, following, end = (self._numbers(numbers, node) for numbers in bounds)
        before = b.op("Slice", shape, start, here, name="before")
        after = b.op("Slice", shape, following, end, name="after")
        apart = b.op("Concat", before, self._numbers(sizes, node), after, name="apart", axis=0)
        found = b.op("Reshape", value, apart, name="by.factor")
        for place, factor in enumerate(factors):
            kept = self.remaining.index(factor)
            if kept is not None:
                found = self._looked_up(node, found, axis + place, kept)
        joined = b.op("Concat", before, self._numbers([-1], node), after, name="together", axis=0)
        return b.op("Reshape", found, joined, name="joined")

    def _expanded(self, node: ir.Node, axes: Axes) -> ir.Value:
        """What an Expand gives, in the size that the reader wants; readers of the same size share it."""
        value = node.outputs[0]
        after = self.remaining.shape(axes, value.shape or ())
        key = (value, *(str(dim) for dim in after))
        if key not in self._copies:
            twin = self.rw.at(node).node("Expand", *node.inputs, name="")
            self._copies[key] = twin.outputs[0]
            self._patch(twin, axes, after)
        return self._copies[key]

    def _patch(self, node: ir.Node, axes: Axes, after: Sequence[Dim]) -> None:
        """Put fixed sizes into a target that is computed at run time, and scale such as 12·batch."""
        target = node.inputs[1]
        elements = target_elements(self.relations, target, len(axes))
        factors = [self._factor(atom, parts) for atom, parts in zip(axes, elements, strict=True)]
        sizes: list[int | None] = [dim if isinstance(dim, int) else None for dim in after]
        # The target of an Expand may be shorter than the result, and speaks of its last axes.
        length = fixed_size(target, 0) or len(sizes)
        factors, sizes = factors[-length:], sizes[-length:]
        # What the graph computes of an axis that is cut may be a quotient that is none any more; a Reshape
        # finds one such size by itself.
        if node.op_type == "Reshape" and factors.count(None) == 1:
            sizes[factors.index(None)] = -1
        numbers = self._numbers([1 if size is None else size for size in sizes], node)
        if None not in sizes:
            self.rw.set_input(node, 1, numbers)
            return
        name = f"{node.outputs[0].name}.target"
        if joined := self._joined(node, sizes, factors, name):
            self.rw.set_input(node, 1, joined)
            return
        scaled = self._scaled(node, [factor or (1, 1) for factor in factors], target, name)
        mask = self.rw.constant(np.array([size is not None for size in sizes]), f"{name}.fixed")
        self.rw.set_input(node, 1, self.rw.at(node, name).op("Where", mask, numbers, scaled, name=""))

    def _joined(
        self,
        node: ir.Node,
        sizes: Sequence[int | None],
        factors: Sequence[tuple[int, int] | None],
        name: str,
    ) -> ir.Value | None:
        """A target that was joined from single sizes, with the fixed ones put in; None for another one.

        It still tells shape inference which symbols the variable sizes are.
        """
        before = producer(node.inputs[1], "Concat")
        if (
            before is None
            or len(before.inputs) != len(sizes)
            or any(f not in (None, (1, 1)) for f in factors)
        ):
            return None
        if any(fixed_shape(part) != (1,) for part in before.inputs):
            return None
        parts = [
            part if size is None else self._numbers([size], node)
            for part, size in zip(before.inputs, sizes, strict=True)
        ]
        return self.rw.at(node, name).op("Concat", *parts, name="", axis=0)

    def _scaled(
        self, node: ir.Node, factors: Sequence[tuple[int, int]], target: ir.Value | None, name: str
    ) -> ir.Value | None:
        """The target with its variable sizes brought to what is wanted; 0 and -1 stay."""
        # Where the graph computes 12·batch and 9·batch is wanted, the size is divided by 12, exactly, and
        # multiplied by 9.
        if target is None or all(old == new for old, new in factors):
            return target
        # A size that stays is not touched: that of an input may be named 2·S, and yet be odd.
        changed = [(1, 1) if old == new else (old, new) for old, new in factors]
        old, new = (self._numbers(list(numbers), node) for numbers in zip(*changed, strict=True))
        b = self.rw.at(node, name)
        product = b.op("Mul", b.op("Div", target, old, name="parts"), new, name="product")
        # In a Reshape 0 copies a size and -1 asks for the rest; neither is a number that can be scaled.
        given = b.op("Greater", target, b.constant([0], "zero"), name="given")
        return b.op("Where", given, product, target, name="scaled")

    def _factor(self, atom: int | None, parts: frozenset[int]) -> tuple[int, int] | None:
        """The number in a variable size as the graph computes it from ``parts`` after the cut, and as wanted.

        None where the graph computes it in another way than as a product from axes that are cut.
        """
        atoms = self.relations.atoms
        if atom is None or atoms.size(atom).fixed:
            return 1, 1
        wanted = self.remaining.size(atom).number
        # The graph computes this size from axes that are cut themselves, so part of the change arrives
        # without help.
        if math.prod((atoms.size(part) for part in parts), start=ONE) == atoms.size(atom):
            return math.prod((self.remaining.size(part) for part in parts), start=ONE).number, wanted
        return None if self.remaining.changes(parts) else (atoms.size(atom).number, wanted)

    def _numbers(self, numbers: Sequence[int], node: ir.Node) -> ir.Value:
        return self.rw.at(node).constant(numbers, "sizes")

    # ---- stored tensors

    def _cut_stored(self) -> None:
        slices: dict[tuple[ir.Value, tuple[tuple[ir.Node, int], ...]], dict[int, list[np.ndarray]]] = {}
        for group, keep in self.cuts.items():
            for part in group.slices:
                # Indices without a unit (-1) belong to no group and stay; keep[-1], which they read as
                # well, does not count then.
                stays = (part.units < 0) | keep[part.units]
                # Several groups may cut one tensor, also along one axis: all masks are gathered first, so
                # that it is written once.
                slices.setdefault((part.value, part.uses), {}).setdefault(part.axis, []).append(stays)
        for (value, uses), axes in slices.items():
            # An index goes as soon as one of the groups that own a part of it lets it go.
            kept = {axis: np.flatnonzero(np.logical_and.reduce(masks)) for axis, masks in axes.items()}
            self._cut_value(value, uses, kept)

    def _cut_value(
        self, value: ir.Value, uses: Sequence[tuple[ir.Node, int]], kept: Mapping[int, np.ndarray]
    ) -> None:
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None:
            return
        array = tensor.numpy()
        for axis, index in kept.items():
            # Axes are cut one after the other: fancy indexing with several arrays at once would pair their
            # entries up.
            array = np.take(array, index, axis=axis)
        # Readers that are not among these need the tensor as it is, so it is cut in a copy.
        if not value.is_initializer() or len(value.uses()) > len(uses) or self._is_copied(value):
            new = self._copy(value, array, kept)
            for node, position in uses:
                self.rw.set_input(node, position, new)
            return
        self.rw.overwrite(value, array)
        _compose(self.rw.model, value, kept)

    def _is_copied(self, value: ir.Value) -> bool:
        return any(key[0] is value for key in self._copies)

    def _copy(self, value: ir.Value, array: np.ndarray, kept: Mapping[int, np.ndarray]) -> ir.Value:
        """A tensor for some readers of ``value``; readers that lose the same share it."""
        # A tied weight stays tied: two groups of readers that lose the same share one copy.
        key = (value, *((axis, index.tobytes()) for axis, index in sorted(kept.items())))
        if key not in self._copies:
            self._copies[key] = self.rw.constant(array, value.name or "", value.dtype)
            _compose(self.rw.model, self._copies[key], kept)
        return self._copies[key]

    def _resize_interface(self) -> None:
        """What parts of a model hand on to each other has the new sizes at both ends."""
        model = self.rw.model
        for value in (*model.graph.inputs, *model.graph.outputs):
            axes = self.relations.axes(value)
            if value.shape is None or not self.remaining.changes(axes):
                continue
            after = self.remaining.shape(axes, value.shape)
            model.declared.resize(value, {i: dim for i, dim in enumerate(after) if isinstance(dim, int)})
            value.shape = ir.Shape(after)

    def _record(self, nodes: Sequence[ir.Node]) -> None:
        computed = (value for node in nodes for value in node.outputs)
        for value in (*self.rw.model.graph.inputs, *computed):
            axes = self.relations.axes(value) or []
            found = {axis: self.remaining.index(atom) for axis, atom in enumerate(axes) if atom is not None}
            kept = {axis: index for axis, index in found.items() if index is not None and len(index)}
            _compose(self.rw.model, value, kept)


def _compose(model: Model, value: ir.Value, kept: Mapping[int, np.ndarray]) -> None:
    """Record which indices of the original are left, also after an earlier cut."""
    if not kept or value.name is None:
        return
    axes = model.kept.setdefault(value.name, {})
    for axis, index in kept.items():
        # A second cut counts among what the first has left, whereas the record speaks of the original.
        axes[axis] = axes[axis][index] if axis in axes else index


_EDITS: dict[str, Callable[[_Cut, ir.Node], None]] = {
    "Attention": _Cut.attention,
    "Expand": _Cut.expand,
    "Reshape": _Cut.reshape,
    "RotaryEmbedding": _Cut.attention,
    "Slice": _Cut.slice,
    "Split": _Cut.split,
}
