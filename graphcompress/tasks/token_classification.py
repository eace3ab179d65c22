"""token-classification: a class for each token, and how many entities are found."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphcompress.data.rows import UNLABELLED, Rows
from graphcompress.data.samples import padding_mask
from graphcompress.data.spans import WORD_OF_TOKEN
from graphcompress.errors import DataError
from graphcompress.numerics.metrics import share
from graphcompress.plugin.task import Figure, Metric, Task

Entity = tuple[str, int, int]
"""Kind, first word and last word."""


@dataclass(frozen=True)
class TokenClassification(Task):
    """One list of classes for each text: the largest logit of every token that is no padding.

    Rows of words (a list in ``tokens``) have labels of words: the first token of a word answers for it.
    Where a token has a single logit, it is of the class 1 above 0.
    """

    name: ClassVar[str] = "token-classification"
    outputs: ClassVar[tuple[str, ...]] = ("*logit*",)

    def suits(self, ranks: Mapping[str, int]) -> bool:
        """Whether the first output has several answers per sample."""
        return next(iter(ranks.values()), 0) > 2

    def answers(self, outputs: Mapping[str, np.ndarray], feed: Mapping[str, np.ndarray]) -> list[list[int]]:
        """Lists of classes, as long as the texts.

        Raises:
            DataError: no output has logits for every token.
        """
        found = (a for a in outputs.values() if np.issubdtype(a.dtype, np.floating) and a.ndim > 2)
        logits = next(found, None)
        if logits is None:
            raise DataError(f"task {self.name!r} needs an output [batch, sequence, classes]")
        chosen = logits.argmax(-1) if logits.shape[-1] > 1 else (logits[..., 0] > 0).astype(np.int64)
        mask = padding_mask(feed)
        return [(row if mask is None else row[mask[index]]).tolist() for index, row in enumerate(chosen)]


@dataclass(frozen=True)
class EntityF1(Metric):
    """F1 of entities by the tags of their words (B- begins, I- continues, O is none), as in CoNLL-2003.

    An entity is found when its kind, its first and its last word are right. Labels are names, or numbers of
    the names in the ``id2label`` of the config.json beside the model.
    """

    name: ClassVar[str] = "entity-f1"
    tasks: ClassVar[tuple[str, ...]] = (TokenClassification.name,)
    label: ClassVar[str] = "entity F1"
    noun: ClassVar[str] = "texts"
    columns: ClassVar[tuple[str, ...]] = ("labels", "label", "tags", "ner_tags")

    def check(self, rows: Rows) -> None:
        """Refuse rows without words, labels without a name, and as many labels as there are no words.

        Raises:
            DataError: there are some.
        """
        if WORD_OF_TOKEN not in rows.samples.columns:
            raise DataError("metric 'entity-f1' needs a column 'tokens' with a list of words for each row")
        if not rows.samples.names:
            raise DataError(
                "metric 'entity-f1' needs the names of the classes; put the config.json with id2label beside "
                "the model"
            )
        name = rows.column(self.columns, self.name)
        for row, labels in enumerate(rows.samples.columns[name], 1):
            if not isinstance(labels, (list, tuple)):
                raise DataError(f"metric 'entity-f1': column {name!r} row {row} must be a list of labels")
            for label in labels:
                self._tag(label, rows.samples.names)

    def figure(self, given: np.ndarray, rows: Rows) -> Figure:
        """Classes of tokens [rows] → F1 over the entities of all rows."""
        names = rows.samples.names
        right, all_entities = [], []
        labels = rows.samples.columns[rows.column(self.columns, self.name)]
        for row, (answers, wanted) in enumerate(zip(rows.of_words(given), labels, strict=True), 1):
            # More labels than words are no error: of a text that was cut off the last words have no answer.
            if len(wanted) < len(answers):
                raise DataError(f"metric 'entity-f1': row {row} has {len(wanted)} labels and more words")
            kept = [pair for pair in zip(answers, wanted, strict=False) if pair[1] != UNLABELLED]
            found = entities([names[answer] for answer, _ in kept])
            true = entities([self._tag(label, names) for _, label in kept])
            # F1 is 2·TP / (found + true): as a ratio of two sums over rows it has the standard error of a
            # share.
            right.append(2 * len(found & true))
            all_entities.append(len(found) + len(true))
        value, error = share(right, all_entities)
        return Figure(value, len(rows), error)

    def _tag(self, label: str | int, names: Sequence[str]) -> str:
        if label == UNLABELLED:
            return "O"
        known = label in names if isinstance(label, str) else 0 <= label < len(names)
        if not known:
            raise DataError(f"metric 'entity-f1': label {label!r} is none of the classes {', '.join(names)}")
        return label if isinstance(label, str) else names[label]


def entities(tags: Sequence[str]) -> set[Entity]:
    """The entities of a row of tags; one that begins with I- is taken as begun, as conlleval does."""
    found: set[Entity] = set()
    kind, first = "", 0
    # The O at the end ends an entity that reaches the last word.
    for place, tag in enumerate([*tags, "O"]):
        begins, _, named = tag.partition("-")
        if kind and (begins != "I" or named != kind):
            found.add((kind, first, place - 1))
            kind = ""
        if begins in ("B", "I") and not kind:
            kind, first = named, place
    return found
