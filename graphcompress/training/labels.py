"""Labels: what the data say about a sample, and the loss that belongs to it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch.nn import functional

from graphcompress.data.rows import LABEL_COLUMNS, SCORE_COLUMNS, UNLABELLED
from graphcompress.data.samples import Sample, Samples
from graphcompress.data.teacher_forced import NEXT, is_forced
from graphcompress.errors import DataError
from graphcompress.training.losses import Answer
from graphcompress.training.tokens import Counts, lengths_of

CLASS, TOKEN_CLASSES, MULTIPLE, NUMBER = "class", "token classes", "several classes", "number"


@dataclass(frozen=True)
class Labels:
    """One label per sample.

    Attributes:
        output: name of the output that answers.
        kind: a class per sample, a class per token, a number for every class (0 or 1, several at once; one
            logit is one such class), or one number.
        values: per sample: [], [tokens], [classes] or [].
        spread: variance of numbers, by which their squared error is divided: 1 is as bad as the mean.
    """

    output: str
    kind: str
    values: Sequence[np.ndarray]
    spread: float = 1.0

    def loss(self, answer: torch.Tensor, indices: Sequence[int], counts: Counts) -> torch.Tensor:
        """Part of the mean over a global batch with ``counts`` that the samples at ``indices`` have.

        Cross entropy of classes, binary cross entropy where several may hold at once, squared error of
        numbers. Tokens without a label count as right.
        """
        answer = answer.float()
        wanted = self._batch(indices, answer)
        if self.kind == NUMBER:
            return (answer.reshape(len(wanted)) - wanted).square().sum() / (self.spread * counts.rows)
        if self.kind == MULTIPLE:
            logits = answer.reshape(wanted.shape)
            each = functional.binary_cross_entropy_with_logits(logits, wanted, reduction="none")
            return each.mean(1).sum() / counts.rows
        logits = answer.flatten(0, -2)
        error = functional.cross_entropy(logits, wanted.flatten(), ignore_index=UNLABELLED, reduction="sum")
        return error / (counts.tokens if self.kind == TOKEN_CLASSES else counts.rows)

    def _batch(self, indices: Sequence[int], answer: torch.Tensor) -> torch.Tensor:
        chosen = [self.values[index] for index in indices]
        if self.kind != TOKEN_CLASSES:
            return torch.from_numpy(np.stack(chosen)).to(answer.device)
        padded = np.full(answer.shape[:2], UNLABELLED, np.int64)
        for row, values in zip(padded, chosen, strict=True):
            row[: len(values)] = values
        return torch.from_numpy(padded).to(answer.device)


def read_labels(
    samples: Samples,
    student: Mapping[str, torch.Tensor],
    answers: Sequence[Answer],
    like: Labels | None = None,
) -> Labels | None:
    """The labels of ``samples`` for the first output, whose values ``student`` holds for a few of them.

    None where the data have no column of labels, or the output is none that labels speak about. Labels of
    held-out samples mean what those that are learned from mean: ``like`` says whether one number is a class.

    Raises:
        DataError: a label that does not fit the output.
    """
    if not answers or samples.per_row != 1:
        return None
    name = answers[0].name
    if is_forced(samples):
        after = next(name for name in samples.feeds[0] if name.endswith(NEXT))
        return Labels(name, TOKEN_CLASSES, [feed[after] for feed in samples.feeds])
    shape = tuple(student[name].shape)
    if len(shape) == 1 or (len(shape) == 2 and shape[1] == 1):
        return _numbers(samples, name, like)
    column = next((column for column in LABEL_COLUMNS if column in samples.columns), None)
    if column is None or "logits" not in name or len(shape) not in (2, 3):
        return None
    entries, classes = samples.columns[column], shape[-1]
    where = _Where(column, name, classes)
    if len(shape) == 3:
        return Labels(name, TOKEN_CLASSES, _each(entries, where.of_tokens, samples.feeds))
    if np.ndim(entries[0]) == 1 and not isinstance(entries[0], str):
        return Labels(name, MULTIPLE, _each(entries, where.several, samples.feeds))
    return Labels(name, CLASS, _each(entries, where.one, samples.feeds))


def _numbers(samples: Samples, name: str, like: Labels | None) -> Labels | None:
    """Labels of an output of one number per sample."""
    columns = (*LABEL_COLUMNS, *SCORE_COLUMNS)
    column = next((column for column in columns if column in samples.columns), None)
    if column is None:
        return None
    where = _Where(column, name, 1)
    values = _each(samples.columns[column], where.number, samples.feeds)
    is_class = column in LABEL_COLUMNS and "logits" in name and set(map(float, values)) <= {0.0, 1.0}
    if is_class if like is None else like.kind == MULTIPLE:
        shares = [value.reshape(1) for value in values]
        return Labels(name, MULTIPLE, _each(shares, where.several, samples.feeds))
    # Labels that are all equal have no variance to divide by.
    return Labels(name, NUMBER, values, like.spread if like else max(float(np.var(values)), 1e-12))


def _each(
    entries: Sequence[object], read: Callable[[object, Sample, int], np.ndarray], feeds: Sequence[Sample]
) -> list[np.ndarray]:
    return [read(entry, feed, row) for row, (entry, feed) in enumerate(zip(entries, feeds, strict=True), 1)]


@dataclass(frozen=True)
class _Where:
    """Reads labels of a column for an output with so many classes."""

    column: str
    output: str
    classes: int

    def one(self, entry: object, feed: Sample, row: int) -> np.ndarray:
        """A class."""
        number = _whole(entry)
        if number is None or not 0 <= number < self.classes:
            raise self._refused(entry, row, f"has the classes 0 to {self.classes - 1}")
        return np.array(number, np.int64)

    def of_tokens(self, entry: object, feed: Sample, row: int) -> np.ndarray:
        """A class for every token of the sample."""
        length = sum(lengths_of(feed).values())
        numbers = [_whole(item) for item in entry] if isinstance(entry, (list, tuple, np.ndarray)) else []
        if len(numbers) != length:
            raise self._refused(
                entry,
                row,
                f"answers {length} tokens of that row, special ones too: give a list of as many "
                f"classes, {UNLABELLED} for a token without one",
            )
        for number in numbers:
            if number is None or not (0 <= number < self.classes or number == UNLABELLED):
                raise self._refused(entry, row, f"has the classes 0 to {self.classes - 1}")
        return np.array(numbers, np.int64)

    def several(self, entry: object, feed: Sample, row: int) -> np.ndarray:
        """A 0 or a 1 (or a share) for every class."""
        try:
            found = np.asarray(entry, np.float32)
        except (TypeError, ValueError):
            found = np.zeros(0, np.float32)
        if found.shape != (self.classes,) or not np.all((found >= 0) & (found <= 1)):
            raise self._refused(
                entry, row, f"has {self.classes} classes: give a list of as many numbers 0 or 1"
            )
        return found

    def number(self, entry: object, feed: Sample, row: int) -> np.ndarray:
        """A finite number."""
        try:
            found = np.asarray(entry, np.float32)
        except (TypeError, ValueError):
            found = np.zeros(0, np.float32)
        if found.shape not in ((), (1,)) or not np.all(np.isfinite(found)):
            raise self._refused(entry, row, "is one number")
        return found.reshape(())

    def _refused(self, entry: object, row: int, wanted: str) -> DataError:
        shown = repr(entry) if len(repr(entry)) < 80 else f"{repr(entry)[:80]}…"
        return DataError(
            f"column {self.column!r} row {row} is {shown}, the output {self.output!r} {wanted}; "
            "correct the data, or leave labels out with labels=0"
        )


def _whole(entry: object) -> int | None:
    """A whole number, also one that a CSV file holds as text; None for anything else."""
    if isinstance(entry, bool):
        return None
    if isinstance(entry, str):
        return int(entry) if entry.strip().lstrip("-").isdecimal() else None
    return int(entry) if isinstance(entry, (int, np.integer)) else None
