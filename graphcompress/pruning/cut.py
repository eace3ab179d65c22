"""The physical cut of groups."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.arguments import slice_ranges
from graphcompress.analysis.couplings import Group
from graphcompress.analysis.relations.rules import Axes, Relations
from graphcompress.analysis.reshape import Dim, reshape_target
from graphcompress.model import Model
from graphcompress.rewrite import Rewriter


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
        self.keep = {group.leaf: keep for group, keep in cuts.items()}
        self.sizes = {leaf: int(keep.sum()) for leaf, keep in self.keep.items()}
        self._index: dict[int, np.ndarray | None] = {}
        self._copies: dict[tuple[object, ...], ir.Value] = {}

    def run(self) -> None:
        """Rewrite constants of shape first, then the stored tensors."""
        nodes = list(self.rw.model.graph)
        self._record(nodes)
        for node in nodes:
            edit = _EDITS.get(node.op_type)
            if edit is not None and not node.domain and self._touches(node):
                edit(self, node)
        self._cut_stored()
        self.rw.modified = True

    # ---- what changes

    def changes(self, axes: Iterable[int | None] | None) -> bool:
        """Whether any of the axes loses units."""
        return any(atom is not None and self.index(atom) is not None for atom in axes or ())

    def index(self, atom: int) -> np.ndarray | None:
        """Kept indices of an axis of fixed size, or None when it keeps all."""
        root = self.relations.atoms.root(atom)
        if root not in self._index:
            self._index[root] = self._kept(root)
        return self._index[root]

    def _kept(self, root: int) -> np.ndarray | None:
        atoms = self.relations.atoms
        leaves = [leaf for leaf in atoms.leaves(root) if leaf in self.keep]
        if not leaves:
            return None
        if not atoms.size(root).fixed:
            return np.arange(0)
        stays = np.ones(atoms.size(root).number, dtype=bool)
        for leaf in leaves:
            units = atoms.units(root, leaf)
            stays &= (units < 0) | self.keep[leaf][units]
        return np.flatnonzero(stays)

    def shape(self, axes: Axes | None, before: Iterable[Dim]) -> list[Dim]:
        """The shape of a value after the cut."""
        return [
            dim if atom is None else self.relations.atoms.size_after(atom, self.sizes).dim()
            for atom, dim in zip(axes or (), before, strict=True)
        ]

    def after(self, atom: int | None) -> int:
        """Size of an axis of fixed size after the cut."""
        return 1 if atom is None else self.relations.atoms.size_after(atom, self.sizes).number

    def _touches(self, node: ir.Node) -> bool:
        operands = (self.relations.operand(node, index) for index in range(len(node.inputs)))
        results = (self.relations.output(node, index) for index in range(len(node.outputs)))
        return any(self.changes(axes) for axes in (*operands, *results))

    # ---- edits of nodes

    def reshape(self, node: ir.Node) -> None:
        """Write the target anew."""
        source, target = node.inputs[0], node.outputs[0]
        if source is None or source.shape is None or target.shape is None:
            return
        before = self.shape(self.relations.operand(node, 0), source.shape)
        after = self.shape(self.relations.output(node), target.shape)
        numbers = reshape_target(before, after)
        if numbers is None:
            self._patch(node, after)
            return
        self.rw.set_input(node, 1, self._numbers(numbers, node))
        self.rw.set_attribute(node, "allowzero", None)  # a 0 copies

    def expand(self, node: ir.Node) -> None:
        """Put the new sizes into the target."""
        target = node.outputs[0]
        if target.shape is not None:
            self._patch(node, self.shape(self.relations.output(node), target.shape))

    def split(self, node: ir.Node) -> None:
        """Write the sizes of the parts."""
        axis = node.attributes.get_int("axis", 0)
        parts = [self.relations.output(node, index) or [] for index in range(len(node.outputs))]
        if not self.changes([part[axis] for part in parts]):
            return
        sizes = self._numbers([self.after(part[axis]) for part in parts], node)
        self.rw.set_attribute(node, "num_outputs", None)
        self.rw.set_input(node, 1, sizes)

    def slice(self, node: ir.Node) -> None:
        """Move the bounds to where they are after the cut."""
        source = self.relations.operand(node, 0) or []
        ranges = slice_ranges(node) or {}
        if not self.changes([source[axis] for axis in ranges]):
            return
        moved = {axis: self._moved(source[axis], bounds) for axis, bounds in ranges.items()}
        last = np.iinfo(np.int64).max
        starts = [start for start, _, _ in moved.values()]
        stops = [last if stop is None else stop for _, stop, _ in moved.values()]
        steps = [step for _, _, step in moved.values()]
        for index, numbers in enumerate((starts, stops, list(moved), steps), start=1):
            self.rw.set_input(node, index, self._numbers(numbers, node))

    def _moved(self, atom: int | None, bounds: tuple[int, int | None, int]) -> tuple[int, int | None, int]:
        index = None if atom is None else self.index(atom)
        if atom is None or index is None:
            return bounds
        start, stop, step = slice(*bounds).indices(self.relations.atoms.size(atom).number)
        return int((index < start).sum()), int((index < stop).sum()), step

    def attention(self, node: ir.Node) -> None:
        """Write the numbers of heads, where they are attributes."""
        for name, index in (("q_num_heads", 0), ("kv_num_heads", 1), ("num_heads", 0)):
            heads = node.attributes.get_int(name, 0)
            axes = self.relations.operand(node, index)
            if heads and axes and axes[-1] is not None:
                self.rw.set_attribute(node, name, self._heads_after(axes[-1], heads))

    def _heads_after(self, width: int, heads: int) -> int:
        """Heads of which anything is left, in an axis of ``heads`` equal parts."""
        index = self.index(width)
        size = self.relations.atoms.size(width).number // heads
        return heads if index is None else len(np.unique(index // size))

    def _patch(self, node: ir.Node, after: Sequence[Dim]) -> None:
        """Put fixed sizes into a target that is computed at run time, and scale such as 12·batch."""
        target = node.inputs[1]
        fixed = np.array([isinstance(dim, int) for dim in after])
        numbers = self._numbers([dim if isinstance(dim, int) else 1 for dim in after], node)
        if fixed.all():
            self.rw.set_input(node, 1, numbers)
            return
        name = f"{node.outputs[0].name}.target"
        scaled = self._scaled(node, target, name)
        mask = self.rw.constant(fixed, f"{name}.fixed")
        self.rw.set_input(node, 1, self.rw.node("Where", mask, numbers, scaled, before=node, name=name))

    def _scaled(self, node: ir.Node, target: ir.Value | None, name: str) -> ir.Value | None:
        """The target with its variable sizes brought from before the cut to after it; 0 and -1 stay."""
        factors = [
            self._factor(node, axis, atom) for axis, atom in enumerate(self.relations.output(node) or ())
        ]
        if target is None or all(old == new for old, new in factors):
            return target
        old, new = (self._numbers(list(numbers), node) for numbers in zip(*factors, strict=True))
        parts = self.rw.node("Div", target, old, before=node, name=f"{name}.parts")
        product = self.rw.node("Mul", parts, new, before=node, name=f"{name}.product")
        zero = self.rw.constant(np.array([0], dtype=np.int64), f"{name}.zero")
        given = self.rw.node("Greater", target, zero, before=node, name=f"{name}.given")
        return self.rw.node("Where", given, product, target, before=node, name=f"{name}.scaled")

    def _factor(self, node: ir.Node, axis: int, atom: int | None) -> tuple[int, int]:
        """The number in a variable size before and after; (1, 1) where the graph measures it anew."""
        atoms = self.relations.atoms
        if atom is None or atoms.size(atom).fixed or not self.changes([atom]):
            return 1, 1
        elements = self.relations.measured.get(node.inputs[1]) if node.inputs[1] is not None else None
        if elements is not None and axis < len(elements) and self.changes(sorted(elements[axis])):
            return 1, 1
        return atoms.size(atom).number, atoms.size_after(atom, self.sizes).number

    def _numbers(self, numbers: Sequence[int], node: ir.Node) -> ir.Value:
        return self.rw.constant(np.array(numbers, dtype=np.int64), f"{node.outputs[0].name}.sizes")

    # ---- stored tensors

    def _cut_stored(self) -> None:
        slices: dict[tuple[ir.Value, tuple[tuple[ir.Node, int], ...]], dict[int, list[np.ndarray]]] = {}
        for group, keep in self.cuts.items():
            for part in group.slices:
                stays = (part.units < 0) | keep[part.units]
                slices.setdefault((part.value, part.uses), {}).setdefault(part.axis, []).append(stays)
        for (value, uses), axes in slices.items():
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
            array = np.take(array, index, axis=axis)
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
        key = (value, *((axis, index.tobytes()) for axis, index in sorted(kept.items())))
        if key not in self._copies:
            self._copies[key] = self.rw.constant(array, value.name or "", value.dtype)
            _compose(self.rw.model, self._copies[key], kept)
        return self._copies[key]

    def _record(self, nodes: Sequence[ir.Node]) -> None:
        for node in nodes:
            for value in node.outputs:
                axes = self.relations.axes(value) or []
                found = {axis: self.index(atom) for axis, atom in enumerate(axes) if atom is not None}
                kept = {axis: index for axis, index in found.items() if index is not None and len(index)}
                _compose(self.rw.model, value, kept)


def _compose(model: Model, value: ir.Value, kept: Mapping[int, np.ndarray]) -> None:
    """Record which indices of the original are left, also after an earlier cut."""
    if not kept or value.name is None:
        return
    axes = model.kept.setdefault(value.name, {})
    for axis, index in kept.items():
        axes[axis] = axes[axis][index] if axis in axes else index


_EDITS: dict[str, Callable[[_Cut, ir.Node], None]] = {
    "Attention": _Cut.attention,
    "Expand": _Cut.expand,
    "Reshape": _Cut.reshape,
    "RotaryEmbedding": _Cut.attention,
    "Slice": _Cut.slice,
    "Split": _Cut.split,
}
