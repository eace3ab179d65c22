"""Refits blocks one after the other on what the pruned model gives them, against what the model gave before.

A fit to the activations of the model as it was does not know the errors of the blocks before it. Here every
block sees those, and its target makes up for them: K-prune (arXiv:2308.03449).
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.residual import branches
from graphcompress.cutting.stages import Stages
from graphcompress.files.runtime import Feed
from graphcompress.graph.model import Model
from graphcompress.measure.calibrate import real_tokens
from graphcompress.numerics.importance import TINY
from graphcompress.numerics.least_squares import (
    GatheredRows,
    JointMoments,
    LinearMap,
    best_ridge,
    mean_squared_error,
    ridge,
)
from graphcompress.numerics.moments import finite_rows
from graphcompress.passes.prune.blocks import Block
from graphcompress.passes.prune.trial_model import TrialModel, whole
from graphcompress.plugin.context import Progress


def refitted(
    model: Model,
    trial: TrialModel,
    held_out: Sequence[bool],
    keeps: Mapping[Block, np.ndarray],
    progress: Progress,
) -> tuple[dict[Block, LinearMap], dict[Block, float]]:
    """Weight [in, out] and bias of the reader of every block in ``keeps``, removed rows zero, and its error.

    An error is that of a fit without the held-out feeds, on those, as a share of the spread of its target.

    Args:
        model: as it was before anything was cut.
        trial: the same, with readers from outside; its feeds are what is fitted on.
        held_out: which of its feeds choose the strength of the ridge.
        keeps: block → [units] mask of what stays, in execution order.
        progress: told of every block.
    """
    fits: dict[Block, LinearMap] = {}
    errors: dict[Block, float] = {}
    places = {block: _places(model, trial, block) for block in keeps}
    after = [[value for place in several for value in place.after] for several in places.values()]
    before = [[value for place in several for value in place.before] for several in places.values()]
    pruned, original = Stages(trial.twin, trial.feeds, after), Stages(model, trial.feeds, before)
    for number, (block, keep) in enumerate(keeps.items()):
        progress("prune: refit", number, len(keeps))
        found = zip(pruned.next(trial.given(fits)), original.next({}), strict=True)
        parts = _moments(trial, held_out, block, places[block], found)
        rows = block.kept_rows(keep)
        prior = trial.fits[block].weight[rows]
        fit_on, rest = (part.of(rows) for part in parts)
        strength = best_ridge(fit_on, rest, prior) if block.can_refit and len(rows) else np.inf
        fits[block] = whole(block, rows, ridge(fit_on + rest, prior, strength))
        lost = mean_squared_error(ridge(fit_on, prior, strength), rest)
        errors[block] = float(np.sqrt(lost / max(rest.energy, TINY)))
        pruned.changed(trial.inputs(block))
    progress("prune: refit", len(keeps), len(keeps))
    return fits, errors


@dataclass(frozen=True)
class _Place:
    """One reader of a block: what it reads now, what it gave, and the streams that this is added to.

    Attributes:
        input: of the reader, in the trial model.
        output: of the reader, in the model as it was.
        streams: in the trial model and in the model as it was; empty where it is added to none.
    """

    input: ir.Value
    output: ir.Value
    streams: tuple[ir.Value, ...]

    @property
    def after(self) -> list[ir.Value]:
        """What the trial model is asked for."""
        return [self.input, *self.streams[:1]]

    @property
    def before(self) -> list[ir.Value]:
        """What the model as it was is asked for."""
        return [self.output, *self.streams[1:]]


def _places(model: Model, trial: TrialModel, block: Block) -> list[_Place]:
    entries = {branch.output: branch.entry for branch in branches(model)}
    named = {value.name: value for value in _values(trial.twin)}
    found = []
    for was, now in zip(block.readers, trial.readers[block], strict=True):
        entry = _entry(was.output, entries)
        streams = (named[entry.name], entry) if entry is not None and entry.name in named else ()
        found.append(_Place(now.input, was.output, streams))
    return found


def _moments(
    trial: TrialModel,
    held_out: Sequence[bool],
    block: Block,
    places: Sequence[_Place],
    found: Iterable[tuple[Feed, Feed]],
) -> tuple[JointMoments, JointMoments]:
    """Of what the reader is given now, aimed at what it gave, for what is fitted on and for the rest.

    ``found`` are for each feed the values of the trial model and those of the model as it was.
    """
    size = block.reader.in_features, block.reader.out_features
    gathered = GatheredRows(JointMoments(*size)), GatheredRows(JointMoments(*size))
    for feed, aside, (now, was) in zip(trial.feeds, held_out, found, strict=True):
        for place in places:
            x, *passed = _tokens(now, place.after, feed)
            y, *stream = _tokens(was, place.before, feed)
            # What the stream itself has lost so far is added here: after the addition nothing can.
            target = y + stream[0] - passed[0] if stream else y
            both = finite_rows(np.concatenate([x, target], axis=1))
            gathered[aside].update(both[:, : size[0]], both[:, size[0] :])
    return gathered[0].finished(), gathered[1].finished()


def _tokens(found: Feed, values: Sequence[ir.Value], feed: Feed) -> list[np.ndarray]:
    return [
        rows.reshape(-1, rows.shape[-1]).astype(np.float64)
        for rows in (real_tokens(found[value.name or ""], feed) for value in values)
    ]


def _entry(output: ir.Value, entries: Mapping[ir.Value, ir.Value]) -> ir.Value | None:
    """The residual stream that the output of a reader is added to, where that is all that becomes of it."""
    uses = output.consumers()
    return entries.get(uses[0].outputs[0]) if len(uses) == 1 else None


def _values(model: Model) -> list[ir.Value]:
    return [*model.graph.inputs, *(value for node in model.graph for value in node.outputs)]
