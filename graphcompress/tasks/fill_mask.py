"""fill-mask: a token for each place of a text, and how many of the hidden ones are right."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphcompress.data.rows import LABEL_COLUMNS, UNLABELLED, Rows
from graphcompress.data.samples import padding_mask
from graphcompress.errors import DataError
from graphcompress.numerics.metrics import share
from graphcompress.plugin.task import Figure, Metric, Task


@dataclass(frozen=True)
class FillMask(Task):
    """One list of tokens for each text: the likeliest at every place that is no padding."""

    name: ClassVar[str] = "fill-mask"
    outputs: ClassVar[tuple[str, ...]] = ("*logit*",)

    def suits(self, ranks: Mapping[str, int]) -> bool:
        """Never guessed, for the outputs are like those of token-classification: a metric asks for it."""
        return False

    def answers(self, outputs: Mapping[str, np.ndarray], feed: Mapping[str, np.ndarray]) -> list[list[int]]:
        """Lists of token ids, as long as the texts.

        Raises:
            DataError: no output has logits for every token.
        """
        logits = next((array for array in outputs.values() if array.ndim == 3), None)
        if logits is None:
            raise DataError(f"task {self.name!r} needs an output [batch, sequence, vocabulary]")
        mask = padding_mask(feed)
        chosen = logits.argmax(-1)
        return [(row if mask is None else row[mask[index]]).tolist() for index, row in enumerate(chosen)]


@dataclass(frozen=True)
class MaskedAccuracy(Metric):
    """Share of the hidden tokens that are answered right.

    The column of labels holds a list for each row: the token's id where one is hidden, else -100.
    """

    name: ClassVar[str] = "masked-accuracy"
    tasks: ClassVar[tuple[str, ...]] = (FillMask.name,)
    label: ClassVar[str] = "masked accuracy"
    columns: ClassVar[tuple[str, ...]] = LABEL_COLUMNS

    def figure(self, given: np.ndarray, rows: Rows) -> Figure:
        """Token ids [rows] → the share over all hidden tokens."""
        name = rows.column(self.columns, self.name)
        hits, hidden = [], []
        for row, (answers, labels) in enumerate(zip(given, rows.samples.columns[name], strict=True), 1):
            if not isinstance(labels, (list, tuple, np.ndarray)) or len(labels) != len(answers):
                raise DataError(
                    f"metric {self.name!r}: column {name!r} row {row} must be a list with an id for each of "
                    f"the {len(answers)} tokens, {UNLABELLED} for one that is not hidden; got {labels!r:.60}"
                )
            wanted = [(a, label) for a, label in zip(answers, labels, strict=True) if label != UNLABELLED]
            hits.append(sum(a == label for a, label in wanted))
            hidden.append(len(wanted))
        value, error = share(hits, hidden)
        return Figure(value, len(rows), error)
