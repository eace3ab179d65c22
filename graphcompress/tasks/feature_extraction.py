"""feature-extraction: embeddings of texts, and whether similar texts have similar ones."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphcompress.data.rows import SCORE_COLUMNS, Rows
from graphcompress.data.samples import padding_mask
from graphcompress.errors import DataError
from graphcompress.numerics.metrics import correlation_error, cosine, spearman
from graphcompress.plugin.task import Figure, Metric, Pair, Task


@dataclass(frozen=True)
class FeatureExtraction(Task):
    """One embedding for each text.

    It is the first output [batch, sequence, width], averaged over the attention mask; a model without one
    gives an output [batch, width], which is taken as it is. The two texts of a pair are embedded separately.
    """

    name: ClassVar[str] = "feature-extraction"
    outputs: ClassVar[tuple[str, ...]] = ("*hidden*", "*embedding*", "*pool*", "*feature*")
    pair: ClassVar[Pair] = "separate"

    def suits(self, ranks: Mapping[str, int]) -> bool:
        """Whether there is an output per token or per text."""
        return any(rank in (2, 3) for rank in ranks.values())

    def answers(self, outputs: Mapping[str, np.ndarray], feed: Mapping[str, np.ndarray]) -> np.ndarray:
        """Embeddings [batch, width].

        Raises:
            DataError: no output holds embeddings.
        """
        hidden = next((array for array in outputs.values() if array.ndim == 3), None)
        if hidden is None:
            flat = next((array for array in outputs.values() if array.ndim == 2), None)
            if flat is None:
                raise DataError(
                    f"task {self.name!r} needs an output [batch, sequence, width] or [batch, width]"
                )
            return flat
        mask = padding_mask(feed)
        weights = np.ones(hidden.shape[:2]) if mask is None else mask.astype(np.float64)
        total = np.einsum("bsd,bs->bd", hidden.astype(np.float64), weights)
        # A text without a token is zeros, not NaN.
        return np.asarray(total / np.maximum(weights.sum(1, keepdims=True), 1.0))


@dataclass(frozen=True)
class Similarity(Metric):
    """Spearman correlation of the cosine of a pair's two embeddings with the score column, as in STS-B."""

    name: ClassVar[str] = "similarity"
    also_called: ClassVar[Mapping[str, str]] = dict.fromkeys(("sts", "stsb", "cosine"), "similarity")
    tasks: ClassVar[tuple[str, ...]] = (FeatureExtraction.name,)
    label: ClassVar[str] = "Spearman"
    noun: ClassVar[str] = "pairs"
    columns: ClassVar[tuple[str, ...]] = SCORE_COLUMNS

    def check(self, rows: Rows) -> None:
        """Refuse rows that are no pairs, or scores that are no numbers.

        Raises:
            DataError: they are.
        """
        if rows.samples.per_row != 2:
            raise DataError(
                "metric 'similarity' needs pairs of texts: columns sentence1, sentence2 and score"
            )
        rows.numbers(self.columns, self.name)

    def figure(self, given: np.ndarray, rows: Rows) -> Figure:
        """Answers [rows, 2, width] → the correlation."""
        value = spearman(cosine(given[:, 0], given[:, 1]), rows.numbers(self.columns, self.name))
        return Figure(value, len(rows), correlation_error(value, len(rows)))
