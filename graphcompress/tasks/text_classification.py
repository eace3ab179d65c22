"""text-classification: a class or a number for each text, and how many are right."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphcompress.data.rows import LABEL_COLUMNS, SCORE_COLUMNS, UNLABELLED, Rows
from graphcompress.data.spans import WORD_OF_TOKEN
from graphcompress.errors import DataError
from graphcompress.numerics.metrics import correlation_error, share, spearman
from graphcompress.plugin.task import Figure, Metric, Task

CLASSIFICATIONS = ("text-classification", "token-classification")


@dataclass(frozen=True)
class TextClassification(Task):
    """One class for each text (or pair of texts): the largest logit of the first output.

    Where there is a single logit per text, the answer is that number: a score, or above 0 the class 1.
    """

    name: ClassVar[str] = "text-classification"
    outputs: ClassVar[tuple[str, ...]] = ("*logit*",)

    def suits(self, ranks: Mapping[str, int]) -> bool:
        """Whether the first output has one answer per sample."""
        return next(iter(ranks.values()), 0) in (1, 2)

    def answers(self, outputs: Mapping[str, np.ndarray], feed: Mapping[str, np.ndarray]) -> np.ndarray:
        """Classes or numbers [batch].

        Raises:
            DataError: no output holds floats.
        """
        found = (a for a in outputs.values() if np.issubdtype(a.dtype, np.floating) and a.ndim)
        logits = next(found, None)
        if logits is None:
            raise DataError(
                f"task {self.name!r} needs a floating-point output; the model has {sorted(outputs)}"
            )
        return logits.reshape(len(logits)) if logits[0].size == 1 else logits.argmax(-1)


@dataclass(frozen=True)
class Spearman(Metric):
    """Spearman correlation of one regression output with the score column (cross-encoders)."""

    name: ClassVar[str] = "spearman"
    tasks: ClassVar[tuple[str, ...]] = (TextClassification.name,)
    label: ClassVar[str] = "Spearman"
    columns: ClassVar[tuple[str, ...]] = SCORE_COLUMNS

    def check(self, rows: Rows) -> None:
        """Refuse scores that are no numbers.

        Raises:
            DataError: there are some.
        """
        rows.numbers(self.columns, self.name)

    def figure(self, given: np.ndarray, rows: Rows) -> Figure:
        """Numbers [rows] → the correlation."""
        if not np.issubdtype(given.dtype, np.floating):
            raise DataError("metric 'spearman' needs an output [batch] or [batch, 1]; this one has classes")
        value = spearman(given, rows.numbers(self.columns, self.name))
        return Figure(value, len(rows), correlation_error(value, len(rows)))


@dataclass(frozen=True)
class Accuracy(Metric):
    """Share of rows (of tokens, for an answer per token) whose answer is the label.

    One logit above 0 means the class 1.
    """

    name: ClassVar[str] = "accuracy"
    also_called: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("acc", "top1"), "accuracy"),
        "f1": "entity-f1, squad-f1 or my_file.py:function, a function of your own",
    }
    tasks: ClassVar[tuple[str, ...]] = CLASSIFICATIONS
    label: ClassVar[str] = "accuracy"
    columns: ClassVar[tuple[str, ...]] = LABEL_COLUMNS

    def check(self, rows: Rows) -> None:
        """Refuse labels that are no classes.

        Raises:
            DataError: there are some, or there is no column of labels.
        """
        labels = rows.samples.columns[rows.column(self.columns, self.name)]
        if not isinstance(labels[0], (list, tuple, np.ndarray)):
            rows.numbers(self.columns, self.name)

    def figure(self, given: np.ndarray, rows: Rows) -> Figure:
        """Classes [rows], or a list of them for each row → the share that is right."""
        # Answers for tokens differ in number from row to row, and come as an array of lists.
        if given.dtype != object:
            right = classes(given) == rows.numbers(self.columns, self.name)
            return _share([[row] for row in right])
        name = rows.column(self.columns, self.name)
        labels = rows.samples.columns[name]
        if WORD_OF_TOKEN in rows.samples.columns:
            words = rows.of_words(given)
            return _share([_right(name, row, *pair) for row, pair in enumerate(_cut(words, labels), 1)])
        pairs = zip(given, labels, strict=True)
        return _share([_right(name, row, *pair) for row, pair in enumerate(pairs, 1)])


@dataclass(frozen=True)
class Agreement(Metric):
    """Share of rows (of tokens, for an answer per token) that are answered like the original model does.

    It needs no labels.
    """

    name: ClassVar[str] = "agreement"
    tasks: ClassVar[tuple[str, ...]] = CLASSIFICATIONS
    label: ClassVar[str] = "agreement with the original"
    needs_original: ClassVar[bool] = True

    def figure(self, given: np.ndarray, rows: Rows) -> Figure:
        """Classes [rows], or a list of them for each row → the share that is the same."""
        if given.dtype != object:
            return _share([[row] for row in classes(given) == classes(rows.original)])
        pairs = zip(given, rows.original, strict=True)
        return _share([[x == y for x, y in zip(a, b, strict=True)] for a, b in pairs])


def classes(answers: np.ndarray) -> np.ndarray:
    """Classes [rows]; of a number it is 1 where that is above 0."""
    return answers > 0 if np.issubdtype(answers.dtype, np.floating) else answers


def _cut(
    words: Sequence[Sequence[int]], labels: Sequence[Sequence[int]]
) -> list[tuple[Sequence[int], Sequence[int]]]:
    """Answers and labels of the words that the model has seen."""
    return [(found, wanted[: len(found)]) for found, wanted in zip(words, labels, strict=True)]


def _right(name: str, row: int, answers: Sequence[int], labels: object) -> list[bool]:
    """Whether each labelled token of a row has the right answer."""
    if not isinstance(labels, (list, tuple, np.ndarray)) or len(labels) != len(answers):
        raise DataError(
            f"metric 'accuracy': column {name!r} row {row} must be a list with a class for each of the "
            f"{len(answers)} tokens, {UNLABELLED} for one without a label; got {labels!r:.60}"
        )
    return [a == label for a, label in zip(answers, labels, strict=True) if label != UNLABELLED]


def _share(right: Sequence[Sequence[bool]]) -> Figure:
    value, error = share([sum(row) for row in right], [len(row) for row in right])
    return Figure(value, len(right), error)
