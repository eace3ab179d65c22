"""How well a model does what it is for, before and after: a metric on the rows of a data file."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from typing import Any

import numpy as np

from graphcompress.data.inputs import output_ranks
from graphcompress.data.rows import Rows
from graphcompress.data.samples import Samples
from graphcompress.errors import GraphCompressError, UsageError
from graphcompress.files.runtime import Feed
from graphcompress.generation.generator import Generator
from graphcompress.graph.model import Model
from graphcompress.graph.teacher_forced import encoder_of, writer_of
from graphcompress.measure.answers import ChangedAnswer, changed_answers, without_texts
from graphcompress.measure.own_metric import Function, of_object, read
from graphcompress.measure.verify import Run
from graphcompress.plugin.context import Progress, no_progress
from graphcompress.plugin.options import build, split_calls
from graphcompress.plugin.registry import METRICS, TASKS
from graphcompress.plugin.task import Figure, Metric, Pair, Task, WritingTask, own_metric

BATCH = 16
"""Rows are scored in batches of at most this many samples."""


PARTS = 20
"""The rows are divided into so many parts for the standard error of a drop: the metric is asked twice for
each, so that one which takes a second costs less than a minute."""


@dataclass(frozen=True)
class Drop:
    """How much worse a metric became: what a person reads before and after on the same rows.

    Attributes:
        value: how much worse, in units of the metric; negative where it became better.
        before: the metric of the model that came in.
        standard_error: of ``value``, both models on the same rows; None where it cannot be told.
    """

    value: float
    before: float
    standard_error: float | None = None

    @property
    def share(self) -> float:
        """:attr:`value` as a share of the metric before."""
        return self.value / abs(self.before) if self.before else math.inf * self.value if self.value else 0.0

    @property
    def within_error(self) -> bool:
        """Whether the metric moved by no more than the standard error of its movement."""
        return self.standard_error is not None and abs(self.value) <= self.standard_error


@dataclass(frozen=True)
class Score:
    """A figure with its count: ``Spearman 0.867 on 1,500 pairs``."""

    label: str
    value: float
    count: int
    noun: str
    standard_error: float | None = None

    def __str__(self) -> str:
        return f"{self.label} {self.value:.4f} on {self.count:,} {self.noun}"


def metric(given: str | Metric | Function) -> Metric:
    """The metric that a user types, with its options, or as ``my_file.py:function``; or that of a function.

    Raises:
        UsageError: there is none, or not exactly one.
        MetricError: the file of the function fails.
    """
    if isinstance(given, Metric):
        return given
    if not isinstance(given, str):
        return of_object(given)
    if own_metric(given)[0]:
        return read(given)
    calls = split_calls(given)
    if len(calls) != 1:
        raise UsageError(f"expected one metric, got {given!r}; known: {', '.join(METRICS.names())}")
    ((name, options),) = calls
    return build(METRICS.find(name), name, options)


def pair_for(chosen: Metric, model: Model) -> Pair | None:
    """How the two texts of a row have to be fed to ``model``, so that ``chosen`` can score the answers.

    None where the model alone decides: as one sample, or in windows if it answers questions.

    Raises:
        UsageError: as :func:`task_of`.
    """
    if chosen.given == "run" and not chosen.tasks:
        return None
    if is_written(chosen) and not model.parts:
        raise UsageError(
            f"metric {chosen} scores what a model writes, and {model.path or 'this model'} does not write; "
            "give a folder with the parts of a model that does, or another metric"
        )
    if chosen.tasks and not is_written(chosen) and writer_of(model.parts) is not None:
        raise UsageError(
            f"metric {chosen} is of {' or '.join(chosen.tasks)}, and {model.source or 'this model'} "
            "writes texts; give a metric of what a model writes (graphcompress metrics)"
        )
    encoder = encoder_of(model.parts)
    encoded = None if encoder is None else [value.name for value in encoder.inputs]
    fitting = [task.fits(encoded) for task in _tasks(chosen) if isinstance(task, WritingTask)]
    if is_written(chosen) and not any(fitting):
        reads = "has no encoder" if encoded is None else f"encodes {', '.join(encoded)}"
        raise UsageError(
            f"metric {chosen} is of {' or '.join(chosen.tasks)}, and {model.source or 'this model'} {reads}; "
            "give a metric of its task (graphcompress metrics)"
        )
    pairs = {task.pair for task in _tasks(chosen)}
    pair = pairs.pop() if len(pairs) == 1 else task_of(chosen, output_ranks(model)).pair
    return None if pair == "joint" else pair


def is_written(chosen: Metric) -> bool:
    """Whether ``chosen`` takes what a model writes step by step, not the outputs of one pass."""
    return bool(chosen.tasks) and all(issubclass(TASKS.find(name), WritingTask) for name in chosen.tasks)


def task_of(chosen: Metric, ranks: Mapping[str, int]) -> Task:
    """The task whose answers ``chosen`` takes from a model whose floating-point outputs have these ``ranks``.

    Raises:
        UsageError: none of the tasks suits the outputs, or several do.
    """
    tasks = _tasks(chosen)
    if len(tasks) == 1:
        return tasks[0]
    suiting = [task for task in tasks if task.suits(ranks)]
    named = [task for task in suiting if any(fnmatchcase(r, glob) for r in ranks for glob in task.outputs)]
    for found in (suiting, named):
        if len(found) == 1:
            return found[0]
    names = [task.name for task in suiting or tasks]
    raise UsageError(
        f"metric {chosen}: the outputs {sorted(ranks)} could be of {'several' if suiting else 'none'} of the "
        f"tasks {', '.join(names)}; a function says which one it is for: score.task = {names[0]!r}"
    )


def _tasks(chosen: Metric) -> list[Task]:
    return [TASKS.find(name)() for name in chosen.tasks or TASKS.names()]


def answers(
    chosen: Metric, run: Run, samples: Samples, *, progress: Progress = no_progress, text: str = "evaluate"
) -> np.ndarray:
    """One answer per row [rows, …], [rows, 2, …] where a row is two samples; lists stay lists.

    The model runs on batches of similar length.
    """
    order = samples.order(by_length=True)
    found: list[Any] = [None] * len(order)
    size = samples.batch_size(BATCH)
    task: Task | None = None
    for start in range(0, len(order), size):
        progress(text, start, len(order))
        indices = order[start : start + size]
        feed = samples.batch(indices)  # may be filled up to the size that the model fixes
        outputs = run(feed)
        task = task or task_of(chosen, _ranks(outputs))
        for index, answer in zip(indices, task.answers(outputs, feed), strict=False):
            found[index] = answer
    progress(text, len(order), len(order))
    stacked = _ragged(found) if any(isinstance(answer, list) for answer in found) else np.stack(found)
    per_row = samples.per_row
    return stacked if per_row == 1 else stacked.reshape(-1, per_row, *stacked.shape[1:])


def _ranks(outputs: Mapping[str, np.ndarray]) -> dict[str, int]:
    floats = {name: array.ndim for name, array in outputs.items() if np.issubdtype(array.dtype, np.floating)}
    return {name: rank for name, rank in floats.items() if rank}


def _ragged(rows: list[Any]) -> np.ndarray:
    packed = np.empty(len(rows), dtype=object)
    for index, row in enumerate(rows):
        packed[index] = row
    return packed


class Scoring:
    """Scores models on the same samples, the original first: a metric may compare with its answers.

    A metric of written answers is given models that write in place of runs, and prompts as samples.

    Raises:
        DataError: the samples lack what ``chosen`` needs.
    """

    def __init__(self, chosen: Metric, samples: Samples, progress: Progress = no_progress) -> None:
        self.metric = chosen
        self._rows = Rows(samples)
        self._progress = progress
        self._first: tuple[object, Score] | None = None
        self._last: object = None
        chosen.check(self._rows)

    @property
    def samples(self) -> Samples:
        """What the models are given."""
        return self._rows.samples

    def original(self, run: Run | Generator, text: str = "evaluate the original") -> Score:
        """The score of the model that came in; its answers are kept for those that follow."""
        given = self._given(run, text)
        if self.metric.given == "answers":
            self._rows = Rows(self._rows.samples, np.asarray(given))
        found = self._score(given)
        self._first = given, found
        return found

    def __call__(self, run: Run | Generator, text: str = "evaluate") -> Score:
        """The score of another model."""
        return self._score(self._given(run, text))

    def judged(self, run: Run | Generator, text: str = "evaluate") -> tuple[Score, Drop]:
        """The score of another model, and how much worse it is than the original's.

        Raises:
            UsageError: the original was not scored.
        """
        if self._first is None:
            raise UsageError("the original is scored first: there is nothing to compare with")
        answered, first = self._first
        given = self._given(run, text)
        self._last = given
        found = self._score(given)
        worse = _worse(self.metric, first.value, found.value)
        return found, Drop(worse, first.value, standard_error(self.metric, self._rows, answered, given))

    def changed(self, *, texts: bool = True) -> tuple[ChangedAnswer, ...]:
        """The answers that differ most between the original and the model that was judged last.

        Without ``texts`` nothing of the data is in them but the number of the row.
        """
        if self._first is None:
            return ()
        found = changed_answers(self._first[0], self._last, self._rows)
        return found if texts else tuple(map(without_texts, found))

    def _given(
        self, run: Run | Generator, text: str
    ) -> np.ndarray | Generator | Callable[[Feed], Mapping[str, np.ndarray]]:
        if isinstance(run, Generator):
            return run if self.metric.given == "generator" else self._written(run, text)
        if is_written(self.metric):
            raise UsageError(f"metric {self.metric} scores what a model writes, and this one does not write")
        if self.metric.given == "run":
            return run
        return answers(self.metric, run, self._rows.samples, progress=self._progress, text=text)

    def _written(self, generator: Generator, text: str) -> np.ndarray:
        """Texts [rows] that ``generator`` writes."""
        prompts = self._rows.samples.feeds
        found = generator.ids(prompts, batch=BATCH, progress=self._progress, text=text)
        return _ragged(generator.decoded(found))

    def _score(self, given: object) -> Score:
        return _as_score(self.metric, self.metric.figure(given, self._rows))


def standard_error(chosen: Metric, rows: Rows, before: object, after: object) -> float | None:
    """Standard error of how much worse the answers ``after`` are than those ``before``, on the same ``rows``.

    By the delete-a-group jackknife (Kott, 2001); None where the metric is not of answers [rows], or of one.
    """
    parts = min(PARTS, len(rows))
    if parts < 2 or not isinstance(before, np.ndarray) or not isinstance(after, np.ndarray):
        return None
    try:
        drops = np.array([_drop_without(part, parts, chosen, rows, before, after) for part in range(parts)])
    except GraphCompressError:  # such as a label that none of the rows has: then there is no error
        return None
    error = math.sqrt((parts - 1) / parts * float(np.sum(np.square(drops - np.mean(drops)))))
    return error if math.isfinite(error) else None


def _drop_without(
    part: int, parts: int, chosen: Metric, rows: Rows, before: np.ndarray, after: np.ndarray
) -> float:
    """The drop on the rows of all ``parts`` but one; neighbours lie in different parts."""
    kept = [row for row in range(len(rows)) if row % parts != part]
    some = rows.taken(kept)
    return _worse(chosen, *(chosen.figure(given[kept], some).value for given in (before, after)))


def _worse(chosen: Metric, before: float, after: float) -> float:
    return before - after if chosen.higher_is_better else after - before


def score(chosen: Metric, given: np.ndarray, original: np.ndarray, samples: Samples) -> Score:
    """The score of the answers ``given``; ``original`` are those of the model that came in.

    Raises:
        DataError: the samples lack what ``chosen`` needs.
    """
    return _as_score(chosen, chosen.figure(given, Rows(samples, original)))


def _as_score(metric: Metric, found: Figure) -> Score:
    """What ``metric`` found, in numbers of Python: no checkpoint takes those of NumPy."""
    error = None if found.standard_error is None else float(found.standard_error)
    return Score(metric.label, float(found.value), int(found.count), metric.noun, error)
