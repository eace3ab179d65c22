"""text-generation: how a text goes on, and how well a model foresees real text."""

from __future__ import annotations

import math
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphcompress.data.rows import REFERENCE_COLUMNS, Rows
from graphcompress.data.texts import PROMPT_COLUMNS
from graphcompress.errors import DataError
from graphcompress.generation.generator import Generator
from graphcompress.numerics.metrics import share
from graphcompress.plugin.options import option
from graphcompress.plugin.task import Figure, Metric, WritingTask

BETWEEN = "\n\n"
"""Between the texts of two rows, as in the usual evaluation on WikiText."""


@dataclass(frozen=True)
class TextGeneration(WritingTask):
    """How each text goes on, by the search of generation_config.json."""

    name: ClassVar[str] = "text-generation"
    prompts: ClassVar[tuple[str, ...]] = PROMPT_COLUMNS

    @classmethod
    def fits(cls, encoded: Collection[str] | None) -> bool:
        """Of a decoder alone: one beside an encoder does not foresee a text by itself."""
        return encoded is None


@dataclass(frozen=True)
class ExactMatch(Metric):
    """Share of the texts that are a reference, spaces at their ends aside."""

    name: ClassVar[str] = "exact-match"
    tasks: ClassVar[tuple[str, ...]] = (TextGeneration.name, "text2text-generation")
    label: ClassVar[str] = "exact match"
    noun: ClassVar[str] = "texts"
    columns: ClassVar[tuple[str, ...]] = REFERENCE_COLUMNS

    def check(self, rows: Rows) -> None:
        """Refuse references that are no texts.

        Raises:
            DataError: there are some.
        """
        rows.references(self.columns, self.name)

    def figure(self, given: np.ndarray, rows: Rows) -> Figure:
        """Texts [rows] → the share."""
        references = rows.references(self.columns, self.name)
        hits = [
            text.strip() in {reference.strip() for reference in texts}
            for text, texts in zip(given, references, strict=True)
        ]
        value, error = share(hits, [1] * len(hits))
        return Figure(value, len(hits), error)


@dataclass(frozen=True)
class Perplexity(Metric):
    """exp of the mean negative log-likelihood of a token, given those before it; lower is better.

    All rows are one text, blank lines between them. It is read in windows of ``length`` tokens that advance
    by ``stride``; in each window only tokens that no earlier one has scored count, so that all but the first
    see at least ``length - stride`` tokens before them.
    """

    name: ClassVar[str] = "perplexity"
    tasks: ClassVar[tuple[str, ...]] = (TextGeneration.name,)
    label: ClassVar[str] = "perplexity"
    noun: ClassVar[str] = "tokens"
    higher_is_better: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = PROMPT_COLUMNS
    given = "generator"
    length: int = option(512, "tokens of a window", minimum=2)
    stride: int = option(256, "tokens by which windows advance", minimum=1)

    def check(self, rows: Rows) -> None:
        """Refuse rows without a column of texts.

        Raises:
            DataError: there is none.
        """
        rows.references(self.columns, self.name)

    def figure(self, given: Generator, rows: Rows) -> Figure:
        """A model that writes → its perplexity.

        Raises:
            DataError: the text is a single token.
        """
        texts = [texts[0] for texts in rows.references(self.columns, self.name)]
        (prompt,) = given.prompts([BETWEEN.join(texts)])
        ids = next(iter(prompt.values()))
        losses = [self._window(given, ids, start) for start in self._starts(len(ids))]
        found = np.concatenate(losses) if losses else np.zeros(0)
        if not found.size:
            raise DataError("metric 'perplexity' needs a text of at least two tokens; give more rows")
        value = math.exp(found.mean())
        blocks = [loss.mean() for loss in losses if loss.size]
        # Tokens of a window hang together, so windows are what varies; exp takes its slope along.
        error = value * float(np.std(blocks, ddof=1)) / math.sqrt(len(blocks)) if len(blocks) > 1 else None
        return Figure(value, found.size, error)

    def _starts(self, tokens: int) -> list[int]:
        stride = min(self.stride, self.length)
        return list(range(0, max(1, tokens - self.length + stride), stride))

    def _window(self, given: Generator, ids: np.ndarray, start: int) -> np.ndarray:
        """Losses of the tokens of a window that no earlier window has scored."""
        window = ids[start : start + self.length]
        logits = given.logits(window[None])[0, :-1].astype(np.float64)
        # The exponential of a logit above 709 is infinite; a difference from the largest never is.
        shifted = logits - logits.max(-1, keepdims=True)
        losses = np.log(np.exp(shifted).sum(-1)) - shifted[np.arange(len(window) - 1), window[1:]]
        known = 0 if start == 0 else max(0, self.length - self.stride - 1)
        return np.asarray(losses[known:])
