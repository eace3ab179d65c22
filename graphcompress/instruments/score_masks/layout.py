"""What is scored together in attentions and FFNs: blocks, heads, dimensions, from the couplings."""

from __future__ import annotations

import fnmatch
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.attentions import attentions
from graphcompress.analysis.linears import Linear, linears
from graphcompress.coupling.couplings import FFN, HEAD, Group, couplings
from graphcompress.cutting.silence import Inner, inner_linears_of
from graphcompress.errors import UsageError
from graphcompress.graph.model import Model

ATTENTION = "attention"
NONE, HEADS, DIMS, ROWS, BOTH = "none", "heads", "dims", "rows", "1d"
_BLOCKS = re.compile(r"(joint-)?([1-9]\d*)x([1-9]\d*)")


@dataclass(frozen=True)
class Grain:
    """How finely the weights of a kind are scored.

    Attributes:
        name: ``none``, ``heads``, ``dims``, ``rows``, ``1d`` or ``blocks``.
        inner, outer: size of a block along the axis inside an attention or FFN, and along the other one.
        joint: whether the weights of a group that have the same sizes share their scores.
    """

    name: str
    inner: int = 0
    outer: int = 0
    joint: bool = False

    @classmethod
    def parse(cls, text: str, where: str, names: tuple[str, ...]) -> Grain:
        """Read ``heads`` or ``joint-32x32``.

        Raises:
            UsageError: the text is no grain.
        """
        if text in names:
            return cls(text)
        found = _BLOCKS.fullmatch(text)
        if found is None:
            raise UsageError(f"{where}: must be {', '.join(names)}, 32x32 or joint-32x32, not {text!r}")
        return cls("blocks", int(found[2]), int(found[3]), joint=found[1] is not None)


@dataclass(frozen=True, eq=False)
class Scored:
    """A tensor of scores.

    Attributes:
        kind: ``attention`` or ``ffn``.
        shape: [units], or [blocks along the inner axis, blocks along the outer axis].
    """

    kind: str
    shape: tuple[int, ...]


@dataclass(frozen=True, eq=False)
class Vector:
    """Scores along one axis of a stored weight; ``units`` says which score an index has, -1 for none."""

    scores: int
    axis: int
    units: np.ndarray


@dataclass(frozen=True, eq=False)
class Blocks:
    """Scores of the blocks of a stored weight, ``inner`` · ``outer`` entries each."""

    scores: int
    inner: int
    outer: int


@dataclass(frozen=True, eq=False)
class MaskedWeight:
    """A stored weight that is masked.

    Attributes:
        kind: ``attention`` or ``ffn``.
        weight: the initializer.
        linears: its readers, which share it.
        axis: the stored axis inside the attention or the FFN.
        makes: whether the units are outputs of it, so that their biases are masked with them.
        patterns: scores that lie over it; their masks are multiplied.
    """

    kind: str
    weight: ir.Value
    linears: tuple[Linear, ...]
    axis: int
    makes: bool
    patterns: tuple[Vector | Blocks, ...]

    @property
    def shape(self) -> tuple[int, int]:
        """Sizes of the weight as it is stored."""
        rows, columns = self.linears[0].in_features, self.linears[0].out_features
        return (columns, rows) if self.linears[0].transposed else (rows, columns)

    @property
    def name(self) -> str:
        """What a user calls the weight."""
        return self.linears[0].name


@dataclass
class ScoreLayout:
    """All that is scored in a model.

    Attributes:
        scored: the tensors of scores.
        sites: the weights that are masked.
        groups: heads and FFN nodes that can be cut, with their linears.
        skipped: name of a weight → why it is left alone.
    """

    scored: list[Scored] = field(default_factory=list)
    sites: list[MaskedWeight] = field(default_factory=list)
    groups: list[tuple[Group, list[Inner]]] = field(default_factory=list)
    skipped: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, eq=False)
class _Found:
    """A weight of an attention or an FFN."""

    kind: str
    group: Group | None
    linear: Linear
    axis: int
    units: np.ndarray
    makes: bool


def layout(model: Model, grains: Mapping[str, Grain], only: str) -> ScoreLayout:
    """What is scored in ``model``; ``grains`` has one for ``attention`` and one for ``ffn``."""
    made = ScoreLayout()
    groups = [group for group in couplings(model) if group.kind in (HEAD, FFN)]
    made.groups = [(group, inner_linears_of(group)) for group in groups]
    readers = _readers(model)
    keys: dict[object, int] = {}
    seen: set[ir.Value] = set()
    for found in _found(model, made.groups):
        grain, value = grains[found.kind], found.linear.weight
        # A weight that can be cut comes first, and once more among all weights of attentions.
        if value in seen or grain.name == NONE or not fnmatch.fnmatchcase(found.linear.name, only):
            continue
        seen.add(value)
        reason = _obstacle(found, grain, readers)
        if reason is not None:
            made.skipped[found.linear.name] = reason
            continue
        patterns = tuple(_patterns(made, keys, found, grain))
        same = tuple(readers[value])
        made.sites.append(MaskedWeight(found.kind, value, same, found.axis, found.makes, patterns))
    return made


def _readers(model: Model) -> dict[ir.Value, list[Linear]]:
    readers: dict[ir.Value, list[Linear]] = {}
    for linear in linears(model):
        readers.setdefault(linear.weight, []).append(linear)
    return readers


def _found(model: Model, groups: list[tuple[Group, list[Inner]]]) -> Iterator[_Found]:
    """Weights of heads and FFN nodes that can be cut, then those of attentions whose heads are fixed."""
    for group, inners in groups:
        kind = ATTENTION if group.kind == HEAD else FFN
        for inner in inners:
            yield _Found(kind, group, inner.linear, inner.axis, inner.units, not inner.reads)
    for attention in attentions(model):
        for makes, several in ((True, attention.producers), (False, attention.consumers)):
            for linear in several:
                # Stored [in, out], or [out, in] where it is transposed; what a linear makes lies along out.
                axis = int(linear.transposed) ^ int(makes)
                size = linear.out_features if makes else linear.in_features
                yield _Found(ATTENTION, None, linear, axis, np.full(size, -1), makes)


def _obstacle(found: _Found, grain: Grain, readers: Mapping[ir.Value, list[Linear]]) -> str | None:
    """Why a weight is not scored, or None."""
    value = found.linear.weight
    if not value.is_initializer() or value.is_graph_input():
        return "its weight is an expression"
    if value.dtype is None or not value.dtype.is_floating_point():
        return "its weight is no tensor of floats; put int8 behind"
    if value not in readers:
        return "its weight is a stack of experts, and scores are of one matrix"
    if len(value.uses()) > len(readers[value]) or len({each.transposed for each in readers[value]}) > 1:
        return "its weight is tied: another part of the model reads it too"
    if grain.name in (HEADS, DIMS) and found.group is None:
        return f"the axis of its heads is fixed, and {grain.name} cut along it; 32x32 scores blocks"
    return None


def _patterns(
    made: ScoreLayout, keys: dict[object, int], found: _Found, grain: Grain
) -> Iterator[Vector | Blocks]:
    linear, axis = found.linear, found.axis
    sizes = (linear.out_features, linear.in_features)
    inner, outer = sizes if found.makes else sizes[::-1]

    def scores(key: object, *lengths: int) -> int:
        if key not in keys:
            keys[key] = len(made.scored)
            made.scored.append(Scored(found.kind, lengths))
        return keys[key]

    if grain.name == HEADS or (grain.name == DIMS and found.kind == FFN):
        group = found.group
        if group is not None:
            yield Vector(scores(group, group.size), axis, found.units)
    elif grain.name == DIMS:
        yield Vector(scores((found.group, *_leaves(found)), inner), axis, np.arange(inner))
    elif grain.name in (ROWS, BOTH):
        yield Vector(scores((linear.weight, axis), inner), axis, np.arange(inner))
        if grain.name == BOTH:
            yield Vector(scores((linear.weight, 1 - axis), outer), 1 - axis, np.arange(outer))
    else:
        key = (found.group, inner, outer) if grain.joint and found.group is not None else linear.weight
        counts = (-(-inner // grain.inner), -(-outer // grain.outer))
        yield Blocks(scores(key, *counts), grain.inner, grain.outer)


def _leaves(found: _Found) -> tuple[int, ...]:
    """What the inner axis is made of: queries meet keys in one axis, values meet the output in another."""
    if found.group is None:
        return ()
    relations = found.group.relations
    axes = relations.axes(found.linear.weight) or []
    return tuple(relations.fixed_leaves(axes[found.axis : found.axis + 1]))
