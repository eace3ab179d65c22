"""A narrower model: features of the residual stream go, with all that is as wide as it."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from graphcompress.analysis.linears import Embedding, Linear, embeddings
from graphcompress.analysis.residual import branches
from graphcompress.coupling.atoms.store import BLOCKED
from graphcompress.coupling.couplings import HIDDEN, Group, couplings, relate
from graphcompress.coupling.stream import Stream, stream_of
from graphcompress.data.held_out import split
from graphcompress.data.load import Samples
from graphcompress.files.runtime import Feed
from graphcompress.files.scratch import on_disk
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.calibrate import equal_feeds
from graphcompress.narrowing.features import features_to_keep, narrow
from graphcompress.narrowing.refit import Before, refit_stream
from graphcompress.narrowing.rotation import directions, rotate
from graphcompress.numerics.rotation import basis
from graphcompress.numerics.spread import output_energies, squared_error
from graphcompress.rewrite.rewriter import Rewriter

MEASURES = ("auto", "obs", "activation", "magnitude")
"""What ranks features of a stream."""


def narrow_streams(
    rw: Rewriter, ratio: float, round_to: int, measure: str, *, turn: bool, refit: bool
) -> None:
    """Remove a ``ratio`` of the features of every residual stream whose width nothing fixes."""
    names = [group.name for group in couplings(rw.model) if group.kind == HIDDEN]
    if not names:
        rw.skip("hidden", why_fixed(rw.model))
    for name in names:
        # A cut voids the analysis, so that each stream is looked up anew.
        group = next((each for each in couplings(rw.model) if each.name == name), None)
        if group is not None:
            _narrow_one(rw, group, ratio, round_to, measure, turn=turn, refit=refit)


def width_left(width: int, ratio: float, round_to: int) -> int:
    """How many of ``width`` features stay: at least what the ratio leaves, in multiples of ``round_to``."""
    return min(width, max(1, math.ceil(round(width * (1 - ratio), 6) / round_to)) * round_to)


def _narrow_one(
    rw: Rewriter, group: Group, ratio: float, round_to: int, measure: str, *, turn: bool, refit: bool
) -> None:
    width = width_left(group.size, ratio, round_to)
    if width == group.size:
        rw.skip("hidden", f"{ratio:g} of {group.size} features is less than round_to={round_to}")
        return
    samples, progress = rw.ctx.samples, rw.ctx.progress
    stream, before = stream_of(group), rw.model.clone()
    given = {linear.node: linear.output.name or "" for linear in group.consumers}
    why = _why_not_turned(stream, samples, turn=turn)
    detail = f"{group.size - width:,} of {group.size:,} features of the residual stream removed"
    stored = {part.value for part in group.slices}
    tables = [each for each in embeddings(rw.model) if each.weight in stored]
    found: list[Linear | Embedding] = [*group.producers, *group.consumers, *tables]
    for item in {each.weight: each for each in found}.values():
        rw.touch(item, detail)
    keep = None
    if why or samples is None:
        by = "magnitude" if samples is None else "obs" if measure == "auto" else measure
        keep = features_to_keep(rw.model, stream, samples, by, width, progress)
        narrow(rw, stream, keep)
        rw.note(f"{detail}, by {by}; not rotated: {why}")
    else:
        moment = directions(rw.model, stream, samples, progress)
        onto = basis(moment, width, centred=stream.norms[0].centred)
        rotate(rw, stream, onto)
        left = float(np.trace(onto.T @ moment @ onto) / np.trace(moment))
        rw.note(f"{detail}, rotated to its principal axes: {left:.1%} of its energy is left")
    if samples is None:
        return
    fit_on, held_out = (equal_feeds(before, part) for part in split(samples))
    if refit:
        aside = [False] * len(fit_on) + [True] * len(held_out)
        refit_stream(rw, stream, keep, Before(before, given, [*fit_on, *held_out], aside, progress))
        rw.clean()
    error = _error(before, rw.model, held_out)
    if error is not None:
        rw.note(f"error of the outputs {error:.3f} of their spread on held-out samples")


def _why_not_turned(stream: Stream, samples: Samples | None, *, turn: bool) -> str:
    """Why features are chosen, where a rotation would leave more; an empty text where it is rotated."""
    if not turn:
        return "rotate=false"
    if samples is None:
        return "no samples tell its directions; give them with --data"
    if not stream.norms:
        return "no normalisation of it is known"
    if len({norm.centred for norm in stream.norms}) > 1:
        return "some normalisations take off a mean, others do not"
    return stream.unturned


def why_fixed(model: Model) -> str:
    """What fixes the width of the residual stream."""
    relations = relate(model)
    for branch in branches(model):
        for value in branch.stream:
            for leaf in relations.fixed_leaves((relations.axes(value) or [None])[-1:]):
                if BLOCKED in (marks := relations.atoms.marks(leaf)):
                    return f"the width of the residual stream is fixed: {marks[BLOCKED]}"
    return "no residual stream was found whose width could be cut"


def _error(before: Model, after: Model, feeds: Sequence[Feed]) -> float | None:
    """Root of the mean squared error of the outputs over that of their spread; None where there is none."""
    with Runner(before) as one, Runner(after) as two:
        was, now = on_disk(map(one, feeds)), on_disk(map(two, feeds))
    # What one part hands on to another is narrower now, and no answer.
    energies = output_energies(was)
    same = [name for name in energies if was[0][name].shape == now[0][name].shape]
    if not same:
        return None
    lost = sum(
        squared_error(new[name], old[name]) / energies[name]
        for old, new in zip(was, now, strict=True)
        for name in same
    )
    return math.sqrt(lost / len(same))
