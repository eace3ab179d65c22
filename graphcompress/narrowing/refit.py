"""Refits what reads a narrowed stream, one after the other: from what it is given now to what it gave."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Linear, linears
from graphcompress.coupling.stream import Norm, Stream, is_tied
from graphcompress.cutting.stages import Stages
from graphcompress.files.runtime import Feed
from graphcompress.graph.model import Model
from graphcompress.measure.calibrate import real_tokens
from graphcompress.narrowing.rotation import evaluated
from graphcompress.numerics.importance import TINY
from graphcompress.numerics.least_squares import GatheredRows, JointMoments, best_ridge, ridge
from graphcompress.numerics.moments import finite_rows
from graphcompress.plugin.context import Progress
from graphcompress.rewrite.bias import write_fit
from graphcompress.rewrite.rewriter import Rewriter


@dataclass(frozen=True, eq=False)
class StreamStep:
    """A norm and the linears that read it alone, or linears that read something else of the stream.

    Attributes:
        norm: which is refitted first, or None.
        readers: linears that share their weight, and each reads one of the same values as in the other lists.
    """

    norm: Norm | None
    readers: list[list[Linear]]

    @property
    def inputs(self) -> list[ir.Value]:
        """What is asked for of the narrowed model."""
        return [linear.input for linear in self.readers[0]] if self.norm is None else [self.norm.exit]


@dataclass(frozen=True, eq=False)
class Before:
    """The model as it was, and what refits are made on.

    Attributes:
        model: before anything was cut.
        given: node of a linear of the narrowed model → name of what it gave before.
        feeds: batches of samples.
        held_out: which of them only choose the strength of a ridge.
        progress: told of every step.
    """

    model: Model
    given: Mapping[ir.Node, str]
    feeds: Sequence[Feed]
    held_out: Sequence[bool]
    progress: Progress

    def wanted(self, step: StreamStep, place: int | None = None) -> list[str]:
        """What a step asks this model for, of one of its inputs or of all."""
        norm = [] if step.norm is None else [step.norm.exit.name or ""]
        chosen = (several if place is None else [several[place]] for several in step.readers)
        return [*norm, *(self.given[reader.node] for several in chosen for reader in several)]


def refit_stream(rw: Rewriter, stream: Stream, keep: np.ndarray | None, before: Before) -> None:
    """Refit norms (where features were chosen) and readers of ``stream``, in execution order.

    Args:
        rw: of the narrowed model.
        stream: as it was analysed before the cut.
        keep: [features] mask of those that stayed; None where the stream was rotated, whose norms need none.
        before: the model as it was, and samples.
    """
    steps = list(_steps(rw.model, stream, norms=keep is not None))
    named = {value.name: value for node in before.model.graph for value in node.outputs}
    wanted = [[named[name] for name in before.wanted(step)] for step in steps]
    kept = np.arange(stream.width) if keep is None else np.flatnonzero(keep)
    # A refit changes what its norm and readers give, and not the sum that the norm reads: the next step
    # begins there.
    entries = {norm.exit: norm.entry for norm in stream.norms}
    given = [[*step.inputs, *(entries[value] for value in step.inputs if value in entries)] for step in steps]
    now, then = Stages(rw.model, before.feeds, given), Stages(before.model, before.feeds, wanted)
    for number, step in enumerate(steps):
        before.progress("prune: refit the stream", number, len(steps))
        _refit(rw, step, kept, before, zip(now.next({}), then.next({}), strict=True))
        now.changed(step.inputs)
    before.progress("prune: refit the stream", len(steps), len(steps))


def _steps(model: Model, stream: Stream, *, norms: bool) -> Iterator[StreamStep]:
    """Norms, each with the linears that read it alone, and the other readers, in execution order."""
    together: dict[tuple[ir.Value, ...], list[list[Linear]]] = {}
    for several in _free_readers(model, stream):
        together.setdefault(tuple(linear.input for linear in several), []).append(several)
    ends = {norm.nodes[-1]: norm for norm in stream.norms if norms and norm.gain is not None}
    direct = {(norm.exit,): norm for norm in ends.values()}
    first = {readers[0][0].node: readers for inputs, readers in together.items() if inputs not in direct}
    for node in model.graph:
        if node in ends:
            yield StreamStep(ends[node], together.get((ends[node].exit,), []))
        if node in first:
            yield StreamStep(None, first[node])


def _free_readers(model: Model, stream: Stream) -> list[list[Linear]]:
    """Linears that share their weight, where that is stored and nothing else reads it."""
    tied = {linear.node for linear in stream.group.consumers if is_tied(stream.group, linear)}
    current = {linear.node: linear for linear in linears(model)}
    uses = Counter(linear.weight for linear in current.values())
    found: dict[ir.Value, list[Linear]] = {}
    for node in (linear.node for linear in stream.group.consumers):
        now = current.get(node)
        if now is None or node in tied or not now.weight.is_initializer():
            continue
        if len(now.weight.uses()) == uses[now.weight]:
            found.setdefault(now.weight, []).append(now)
    return list(found.values())


def _refit(
    rw: Rewriter, step: StreamStep, kept: np.ndarray, before: Before, found: Iterable[tuple[Feed, Feed]]
) -> None:
    """Fit every feature behind a norm to what it was, then every weight to what its linears gave.

    ``found`` are for each feed the values of the narrowed model and those of the model before.
    """
    sums = np.zeros((5, len(kept)))
    moments = [
        [GatheredRows(JointMoments(several[0].in_features, several[0].out_features)) for _ in "ab"]
        for several in step.readers
    ]
    for feed, aside, (now, then) in zip(before.feeds, before.held_out, found, strict=True):
        for place, value in enumerate(step.inputs):
            x = _rows(now[value.name or ""], feed)
            targets = [_rows(then[name], feed) for name in before.wanted(step, place)]
            if step.norm is not None:
                y = targets.pop(0)[:, kept]
                sums += [np.ones(len(kept)) * len(x), *(a.sum(axis=0) for a in (x, y, x * x, x * y))]
            for several, part, target in zip(step.readers, moments, targets, strict=True):
                # What is held against a tied table has lost the features that the table has lost.
                wanted = target if target.shape[1] == several[0].out_features else target[:, kept]
                both = finite_rows(np.concatenate([x, wanted], axis=1))
                part[aside].update(both[:, : x.shape[1]], both[:, x.shape[1] :])
    change = None if step.norm is None else _fit_norm(rw, step.norm, sums)
    for several, parts in zip(step.readers, moments, strict=True):
        fit_on, rest = (part.finished() for part in parts)
        if change is not None:
            fit_on, rest = fit_on.mapped(change), rest.mapped(change)
        prior = several[0].dense()
        write_fit(rw, several, ridge(fit_on + rest, prior, best_ridge(fit_on, rest, prior)))


def _fit_norm(rw: Rewriter, norm: Norm, sums: np.ndarray) -> np.ndarray:
    """Scale and shift every feature so that it is nearest to what it was.

    Args:
        rw: of the narrowed model.
        norm: in it.
        sums: [5, features] count, Σ x, Σ y, Σ x² and Σ x·y of what it gives and what it gave.

    Returns:
        [features + 1, features + 1] what that makes of rows (x, 1).
    """
    x, y, xx, xy = sums[1:] / np.maximum(sums[0], 1)
    if norm.shift is None:
        factor, shift = xy / np.maximum(xx, TINY), np.zeros(len(x))
    else:
        factor = (xy - x * y) / np.maximum(xx - x * x, TINY)
        shift = y - factor * x
    for place, name, add in ((norm.gain, "gain", 0.0), (norm.shift, "shift", shift)):
        if place is not None:
            vector = rw.at(place[0]).constant(
                evaluated(place) * factor + add, name, place[0].inputs[place[1]]
            )
            rw.set_input(*place, vector)
    change = np.diag(np.append(factor, 1.0))
    change[-1, :-1] = shift
    return change


def _rows(array: np.ndarray, feed: Feed) -> np.ndarray:
    found = real_tokens(array, feed)
    return found.reshape(-1, found.shape[-1]).astype(np.float64)
