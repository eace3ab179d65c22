"""image-classification: classes for each picture, the likeliest first."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphcompress.data.rows import LABEL_COLUMNS, Rows
from graphcompress.errors import DataError
from graphcompress.numerics.metrics import share
from graphcompress.plugin.options import option
from graphcompress.plugin.task import Figure, Metric, Task


@dataclass(frozen=True)
class ImageClassification(Task):
    """All classes for each picture, in the order of their logits, the largest first."""

    name: ClassVar[str] = "image-classification"
    outputs: ClassVar[tuple[str, ...]] = ("*logit*",)

    def suits(self, ranks: Mapping[str, int]) -> bool:
        """Never guessed, for the outputs are like those of text-classification: a metric asks for it."""
        return False

    def answers(self, outputs: Mapping[str, np.ndarray], feed: Mapping[str, np.ndarray]) -> np.ndarray:
        """Classes [batch, classes], the likeliest first.

        Raises:
            DataError: no output has numbers for every picture.
        """
        logits = next((array for array in outputs.values() if array.ndim == 2), None)
        if logits is None:
            raise DataError(f"task {self.name!r} needs an output [batch, classes]")
        # Of equal logits the first class wins, as in argmax.
        order: np.ndarray = np.argsort(-logits, axis=1, kind="stable")
        return order


@dataclass(frozen=True)
class TopK(Metric):
    """Share of the pictures whose class is among the ``k`` likeliest."""

    name: ClassVar[str] = "top-k"
    tasks: ClassVar[tuple[str, ...]] = (ImageClassification.name,)
    label: ClassVar[str] = "top-k accuracy"
    noun: ClassVar[str] = "pictures"
    columns: ClassVar[tuple[str, ...]] = LABEL_COLUMNS
    k: int = option(1, "so many of the likeliest classes count", minimum=1)

    def check(self, rows: Rows) -> None:
        """Refuse labels that are no classes.

        Raises:
            DataError: there are some.
        """
        rows.numbers(self.columns, self.name)

    def figure(self, given: np.ndarray, rows: Rows) -> Figure:
        """Classes [rows, classes] in order → the share."""
        labels = rows.numbers(self.columns, self.name)
        hits = np.any(given[:, : self.k] == labels[:, None], axis=1).tolist()
        value, error = share(hits, [1] * len(hits))
        return Figure(value, len(hits), error)
