"""One run, from models to trained weights."""

from __future__ import annotations

from dataclasses import replace
from itertools import chain
from pathlib import Path

from graphcompress.errors import TrainingError
from graphcompress.files.reading.hashes import sha256
from graphcompress.fx import write_back
from graphcompress.graph.model import Model
from graphcompress.plugin.context import Context, Training
from graphcompress.plugin.task import Metric
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.training.checkpoints import Checkpoints, identity
from graphcompress.training.group import ProcessGroup
from graphcompress.training.loop import Outcome, Trainer
from graphcompress.training.prepare import Prepared, prepare
from graphcompress.training.settings import TEACHER, Settings
from graphcompress.training.taps import Unshared
from graphcompress.training.teacher_answers import answered_by


def train(
    rw: Rewriter, original: Model, training: Training, settings: Settings, ctx: Context
) -> tuple[Outcome, list[Unshared], set[str]]:
    """Train the model of ``rw`` in place, and let the instruments finish it.

    Returns:
        How it went, the places that had no counterpart, and the names of the initializers that changed.

    Raises:
        GraphCompressError: as :func:`prepare` and :meth:`Trainer.run`; after a TrainingError the model has
            the last good weights.
    """
    group = ProcessGroup()
    if settings.answers == TEACHER:
        learnt, held_out = training.divided()
        teacher = training.teacher or original
        learnt = answered_by(teacher, rw.model, learnt, settings.beams, group, ctx.progress)
        training = replace(training, samples=learnt, held_out=held_out)
    given = prepare(rw.model, original, training, settings)
    checkpoints = Checkpoints(training.folder, _identity(given, settings, training.metric, ctx.seed))
    trainer = Trainer(given, settings, training.metric, ctx.seed, group, checkpoints, ctx.progress)
    try:
        outcome = trainer.run()
    except TrainingError:
        write_back(given.student, rw.model)
        raise
    changed = write_back(given.student, rw.model)
    for attached in given.instruments.values():
        attached.finish(rw)
    return outcome, given.unshared, changed


def _identity(given: Prepared, settings: Settings, metric: Metric | None, seed: int) -> str:
    tensors = chain(given.student.state_dict().values(), given.teacher.state_dict().values())
    feeds = (
        array for part in (given.samples, given.held_out) for feed in part.feeds for array in feed.values()
    )
    labels = (array for part in (given.labels, given.held_out_labels) if part for array in part.values)
    measured = None if metric is None else (str(metric), [sha256(Path(path)) for path in metric.files_read])
    return identity((settings, measured, seed), tensors, chain(feeds, labels))
