"""automatic-speech-recognition: what was said, and how many words of it are wrong."""

from __future__ import annotations

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import numpy as np

from graphcompress.data.features import PICTURE_INPUT
from graphcompress.data.rows import HEARD_COLUMNS, Rows
from graphcompress.errors import DataError
from graphcompress.numerics.metrics import share
from graphcompress.plugin.extras import needs
from graphcompress.plugin.options import option
from graphcompress.plugin.task import Figure, Metric, WritingTask

# An apostrophe stays: don't is one word.
_MARKS = re.compile(r"[^\w\s']")


@dataclass(frozen=True)
class AutomaticSpeechRecognition(WritingTask):
    """One text for each recording, a .wav file or the features that the encoder reads."""

    name: ClassVar[str] = "automatic-speech-recognition"
    prompts: ClassVar[tuple[str, ...]] = ("audio", "file", "path", "input_features")

    @classmethod
    def fits(cls, encoded: Collection[str] | None) -> bool:
        """Of an encoder that reads neither tokens nor pictures."""
        return encoded is not None and not {"input_ids", PICTURE_INPUT} & set(encoded)


@dataclass(frozen=True)
class WordErrorRate(Metric):
    """Words that are wrong, missing or too many, as a share of those that were said (jiwer); 0 is best.

    Punctuation and upper case do not count, unless ``exact``.
    """

    name: ClassVar[str] = "wer"
    tasks: ClassVar[tuple[str, ...]] = (AutomaticSpeechRecognition.name,)
    label: ClassVar[str] = "word error rate"
    noun: ClassVar[str] = "recordings"
    higher_is_better: ClassVar[bool] = False
    columns: ClassVar[tuple[str, ...]] = HEARD_COLUMNS
    exact: bool = option(False, "punctuation and upper case count")

    def check(self, rows: Rows) -> None:
        """Refuse references that are no texts, or that hold no word.

        Raises:
            DataError: there are some.
            MissingExtraError: jiwer is not installed.
        """
        needs(f"metric {self.name!r}", "metrics", "jiwer")
        for row, texts in enumerate(rows.references(self.columns, self.name), 1):
            if not self._words(texts[0]):
                raise DataError(
                    f"metric {self.name!r}: the reference of row {row} has no word; remove that row"
                )

    def figure(self, given: np.ndarray, rows: Rows) -> Figure:
        """Texts [rows] → the rate over all words."""
        import jiwer

        wrong, said = [], []
        for text, references in zip(given, rows.references(self.columns, self.name), strict=True):
            found = jiwer.process_words(self._words(references[0]), self._words(text))
            wrong.append(found.substitutions + found.deletions + found.insertions)
            said.append(found.hits + found.substitutions + found.deletions)
        value, error = share(wrong, said)
        return Figure(value, len(rows), error)

    def _words(self, text: str) -> str:
        return " ".join((text if self.exact else _MARKS.sub(" ", text.lower())).split())
