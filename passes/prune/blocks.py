"""Pruning of a block: which inputs a unit owns, what samples say of it, and which of it is held out."""

from __future__ import annotations

import fnmatch
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.experts import Experts
from graphcompress.analysis.linears import Linear
from graphcompress.coupling.couplings import Group
from graphcompress.coupling.ends import is_zeroing, shown
from graphcompress.data.held_out import split
from graphcompress.data.load import Samples
from graphcompress.graph.expressions import leaves
from graphcompress.graph.model import Model
from graphcompress.measure.calibrate import observe
from graphcompress.numerics.importance import rows_of, unit_norms
from graphcompress.numerics.least_squares import GatheredRows, JointMoments
from graphcompress.numerics.moments import finite_rows
from graphcompress.plugin.context import Progress
from graphcompress.rewrite.rewriter import Rewriter

MEMORY_BYTES = 600_000_000
"""Second moments take at most this many bytes at a time; a larger model runs over the samples once for every
portion of blocks."""


@dataclass(frozen=True, eq=False)
class Block:
    """A group of heads or FFN nodes, and the one linear that reads them.

    An encoder that runs several times on the same weights (two towers, layers that share theirs) has several
    readers with one weight and one bias: they are one reader, of the tokens of all.

    Attributes:
        group: what is cut.
        reader: the linear whose input rows are cut; the first of those that share their weight.
        units: [in] the unit that each input feature of the reader belongs to.
        rows: [units, r] the same the other way round.
    """

    group: Group
    reader: Linear
    units: np.ndarray
    rows: np.ndarray

    @property
    def name(self) -> str:
        """That of the group."""
        return self.group.name

    @property
    def size(self) -> int:
        """Number of units."""
        return self.group.size

    @property
    def readers(self) -> tuple[Linear, ...]:
        """All linears that read the units; they share weight and bias."""
        return self.group.consumers

    @cached_property
    def shown(self) -> list[ir.Value]:
        """What is made of all units besides what their readers give."""
        return shown(self.group)

    @cached_property
    def plain(self) -> bool:
        """Whether removing a unit is zeroing what its readers read of it."""
        return is_zeroing(self.group)

    @property
    def linears(self) -> list[Linear]:
        """All linears that lose columns or rows; of those that share their weight the first."""
        first: dict[ir.Value, Linear] = {}
        for linear in (*self.group.producers, self.reader):
            first.setdefault(linear.weight, linear)
        return list(first.values())

    @property
    def can_refit(self) -> bool:
        """Whether the reader's weight is a stored tensor (and not an expression over some), of one linear."""
        return self.reader.weight.is_initializer() and not self.of_experts

    @property
    def of_experts(self) -> bool:
        """Whether several experts share the units, of which each is refitted by nobody."""
        return isinstance(self.reader, Experts)

    def kept_rows(self, keep: np.ndarray) -> np.ndarray:
        """Input features of the reader that stay when the units of the mask ``keep`` stay."""
        return np.flatnonzero((self.units < 0) | keep[self.units])

    def norms(self, linears: Sequence[Linear]) -> np.ndarray:
        """[units] root of the sum of squares of what each unit owns in the weights of ``linears``."""
        # The stored factors are measured, not their product: a slice belongs to a leaf, also where kron
        # made two of one weight.
        owned = {leaf for linear in linears for leaf in leaves(linear.weight)}
        total = np.zeros(self.size)
        for part in self.group.slices:
            if part.value in owned and part.value.const_value is not None:
                array = part.value.const_value.numpy()
                total += unit_norms(array, part.axis, part.units, self.size) ** 2
        norms: np.ndarray = np.sqrt(total)
        return norms


class Evidence:
    """What the samples show of the inputs of a block's reader.

    Attributes:
        fit: moments of the samples that fits are made on.
        held_out: moments of the others.
        peaks: [in] largest magnitude of every feature.
    """

    def __init__(self, features: int) -> None:
        self.fit = JointMoments(features)
        self.held_out = JointMoments(features)
        self.peaks = np.zeros(features)

    @property
    def all(self) -> JointMoments:
        """Moments of all samples."""
        return self.fit + self.held_out


class _Watch:
    """An observer that fills one half of an :class:`Evidence`."""

    def __init__(self, evidence: Evidence, moments: JointMoments) -> None:
        self.evidence = evidence
        self.moments = GatheredRows(moments)

    def update(self, array: np.ndarray) -> None:
        """Take in tokens [..., features]; those that hold NaN or infinity are left out."""
        tokens = finite_rows(array)
        self.moments.update(tokens)
        self.evidence.peaks = np.maximum(self.evidence.peaks, np.abs(tokens).max(axis=0, initial=0.0))


class _Watches:
    """Observers of one value: each belongs to a block that reads it."""

    def __init__(self) -> None:
        self.all: list[_Watch] = []

    def update(self, array: np.ndarray) -> None:
        """Show it to all."""
        for watch in self.all:
            watch.update(array)


class Witness:
    """Runs the model as it is on samples and tells what they show of blocks, in bounded memory."""

    def __init__(self, model: Model, samples: Samples, progress: Progress) -> None:
        self.model = model
        self.progress = progress
        self.fit_on, self.held_out = split(samples)
        self._known: dict[Block, Evidence] = {}

    def stream(self, blocks: Sequence[Block]) -> Iterator[tuple[Block, Evidence]]:
        """Every block with its evidence; what does not fit into memory is gathered again each time."""
        for portion in _portions(blocks):
            # Where all blocks fit into one portion, the second stream finds everything and the samples run
            # only once.
            if any(block not in self._known for block in portion):
                self._known = self._gather(portion)
            yield from ((block, self._known[block]) for block in portion)

    def _gather(self, blocks: Sequence[Block]) -> dict[Block, Evidence]:
        # Blocks whose readers see the same values (those of shared weights) share one evidence, so that it
        # is gathered once.
        inputs = {block: tuple(reader.input for reader in block.readers) for block in blocks}
        found = {inputs[block]: Evidence(block.reader.in_features) for block in blocks}
        for samples, part in ((self.fit_on, "fit"), (self.held_out, "held_out")):
            watches: dict[ir.Value, _Watches] = defaultdict(_Watches)
            for values, evidence in found.items():
                watch = _Watch(evidence, getattr(evidence, part))
                for value in values:
                    watches[value].all.append(watch)
            observe(self.model, watches, samples, progress=self.progress, text="prune: activations")
            for watch in (watch for several in watches.values() for watch in several.all):
                watch.moments.finished()
        return {block: found[inputs[block]] for block in blocks}


def blocks_of(rw: Rewriter, groups: Sequence[Group], only: str) -> list[Block]:
    """Groups of heads and FFN nodes that can be pruned, where the name of a linear matches ``only``.

    What cannot is skipped. Factors of a weight make several groups of one axis: the finest of them is taken.
    """
    blocks: dict[ir.Node, Block] = {}
    # The largest group comes first: it has the most units, and a reader is taken by the first that claims
    # it.
    for group in sorted(groups, key=lambda group: -group.size):
        names = [linear.name for linear in (*group.producers, *group.consumers)]
        if group.kind not in ("ffn", "head") or not any(fnmatch.fnmatchcase(name, only) for name in names):
            continue
        reason = _obstacle(group)
        if reason is not None:
            rw.skip(group.name, reason)
            continue
        reader = group.consumers[0]
        units = _units(group, reader)
        if reader.node in blocks:
            rw.skip(group.name, "the same features are pruned along another factor of the weight")
            continue
        blocks[reader.node] = Block(group, reader, units, rows_of(units))
    order = {id(group): index for index, group in enumerate(groups)}
    return sorted(blocks.values(), key=lambda block: order[id(block.group)])


def _obstacle(group: Group) -> str | None:
    """Why a group is left alone, or None."""
    weights = {(linear.weight, linear.bias, linear.transposed) for linear in group.consumers}
    if len(weights) != 1:
        return f"{len(weights)} linears read it; one is needed to know what a unit contributes"
    sharing = Counter(linear.weight for linear in (*group.producers, *group.consumers))
    for linear in (*group.producers, *group.consumers):
        stored = (linear.weight, *leaves(linear.weight))
        # A reader from outside the group would lose rows or columns that it needs.
        if any(len(value.uses()) > sharing.get(value, 1) or value.is_graph_output() for value in stored):
            return f"weight {linear.name!r} is tied: another part of the model reads it too"
    units = _units(group, group.consumers[0])
    sizes = set(np.bincount(units[units >= 0], minlength=group.size).tolist())
    return None if len(sizes) == 1 else "its units own different numbers of features"


def _units(group: Group, reader: Linear) -> np.ndarray:
    """[in] the unit of every input feature, also where the weight is an expression."""
    axes = group.relations.axes(reader.weight) or []
    atom = axes[-1 if reader.transposed else -2]
    if atom is None:
        return np.full(reader.in_features, -1)
    return group.relations.atoms.units(atom, group.leaf)


def _portions(blocks: Sequence[Block]) -> list[list[Block]]:
    portions: list[list[Block]] = []
    room = 0
    for block in blocks:
        # Two halves of the samples, eight bytes a number, and one feature more for the bias.
        size = 2 * 8 * (block.reader.in_features + 1) ** 2
        if not portions or size > room:
            portions.append([])
            room = MEMORY_BYTES
        portions[-1].append(block)
        room -= size
    return portions
