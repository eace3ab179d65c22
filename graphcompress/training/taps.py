"""Taps: the places inside a model that a student shares with its teacher."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.attention import Attention
from graphcompress.analysis.residual import Branch, branches
from graphcompress.coupling.layers import Layer, layers
from graphcompress.graph.model import Model

EMBEDDING, HIDDEN, FFN_OUTPUT, SCORES = "embedding", "hidden", "ffn", "scores"


@dataclass(frozen=True, eq=False)
class Tap:
    """One place: the embedding output, a layer's output, an FFN's output, or scores before the mask.

    Attributes:
        kind: ``embedding``, ``hidden``, ``ffn`` or ``scores`` (the four losses of KroneckerBERT,
            arXiv:2109.06243, are embedding, ffn, scores and the outputs of the graph).
        value: value of the graph.
    """

    kind: str
    value: ir.Value

    @property
    def name(self) -> str:
        """Name of the value."""
        return self.value.name or ""


@dataclass(frozen=True)
class Shared:
    """A place of the student and its counterpart in the teacher.

    Attributes:
        kind: of the tap.
        student, teacher: names of the values.
        kept: axis → which indices of the teacher's value the student still has.
    """

    kind: str
    student: str
    teacher: str
    kept: Mapping[int, np.ndarray]


@dataclass(frozen=True)
class Unshared:
    """A place of the student that has no counterpart in the teacher, and why."""

    kind: str
    student: str
    reason: str


def taps(model: Model) -> list[Tap]:
    """Places of ``model`` in execution order, kind by kind; empty where no transformer blocks are found."""
    blocks = layers(model)
    if not blocks:
        return []
    found = [Tap(EMBEDDING, blocks[0].entry)]
    found += [Tap(HIDDEN, block.exit) for block in blocks]
    found += [Tap(FFN_OUTPUT, value) for value in _ffn_outputs(branches(model), blocks)]
    found += [Tap(SCORES, value) for block in blocks for value in _scores(block.attentions)]
    return found


def shared(student: Model, teacher: Model) -> tuple[list[Shared], list[Unshared]]:
    """Places of ``student`` with their counterparts in ``teacher``, and those that have none.

    Passes keep the names of values, so a student that was made from its teacher is matched by name: also
    where layers were dropped, and where a value was narrowed (``Model.kept`` knows the indices). Other
    places are matched in order: one to one where both have equally many of a kind, else evenly spread.
    """
    theirs = taps(teacher)
    by_name = {tap.name: tap for tap in theirs}
    found: list[Shared] = []
    missing: list[Unshared] = []
    for kind in (EMBEDDING, HIDDEN, FFN_OUTPUT, SCORES):
        own = [tap for tap in taps(student) if tap.kind == kind]
        other = [tap for tap in theirs if tap.kind == kind]
        for index, tap in enumerate(own):
            match = by_name.get(tap.name) or _by_position(index, len(own), other)
            pair = _pair(tap, match, student)
            (found if isinstance(pair, Shared) else missing).append(pair)  # type: ignore[arg-type]
    return found, missing


def _ffn_outputs(steps: Sequence[Branch], blocks: Sequence[Layer]) -> list[ir.Value]:
    """What a feed-forward part adds to the residual stream."""
    inside = {linear.node for block in blocks for linear in block.linears}
    values = []
    for step in steps:
        node = step.output.producer()
        if step.attentions or node is None or not any(linear.node in inside for linear in step.linears):
            continue
        values += [value for value in node.inputs if value is not None and value is not step.entry]
    return values


def _scores(attentions: Sequence[Attention]) -> list[ir.Value]:
    return [attention.scores for attention in attentions if attention.scores is not None]


def _by_position(index: int, count: int, other: Sequence[Tap]) -> Tap | None:
    """The place at the same depth: the last belongs to the last."""
    if not other:
        return None
    return other[(index + 1) * len(other) // count - 1]


def _pair(tap: Tap, match: Tap | None, student: Model) -> Shared | Unshared:
    if match is None:
        return Unshared(tap.kind, tap.name, "the teacher has no such place")
    kept = student.kept.get(tap.name, {}) if tap.name == match.name else {}
    own, other = tap.value.shape, match.value.shape
    if own is None or other is None or len(own) != len(other):
        return Unshared(tap.kind, tap.name, f"shape {own}, the teacher's is {other}")
    for axis, (size, wanted) in enumerate(zip(own, other, strict=True)):
        wanted = len(kept[axis]) if axis in kept else wanted
        if isinstance(size, int) and isinstance(wanted, int) and size != wanted:
            return Unshared(tap.kind, tap.name, f"{size} wide at axis {axis}, the teacher's is {wanted}")
    return Shared(tap.kind, tap.name, match.name, kept)
