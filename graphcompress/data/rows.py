"""The rows of a data file, as a metric reads them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any, overload

import numpy as np

from graphcompress.data.samples import Samples
from graphcompress.data.spans import WORD_OF_TOKEN
from graphcompress.errors import DataError

SCORE_COLUMNS = ("score", "similarity", "similarity_score", "label")
LABEL_COLUMNS = ("label", "labels", "target")
REFERENCE_COLUMNS = (
    "reference",
    "references",
    "target",
    "translation",
    "summary",
    "answer",
    "completion",
    "transcription",
    "text",
)
"""What a person would have written, a text or a list of them for each row."""
HEARD_COLUMNS = (*REFERENCE_COLUMNS, "transcript", "sentence", "caption")
"""What a person would have written of a recording or a picture, of which no text is the prompt."""
UNLABELLED = -100
"""Label of a token that has none, as in PyTorch."""


class Rows(Sequence[Mapping[str, Any]]):
    """Rows of a data file: ``rows[3]`` is a dict of its columns, ``rows[3:5]`` are rows again.

    Attributes:
        samples: what the model is fed, ``samples.per_row`` of them for each row.
    """

    def __init__(self, samples: Samples, original: np.ndarray | None = None) -> None:
        self.samples = samples
        self._original = original

    @property
    def original(self) -> np.ndarray:
        """The answers of the model that came in, one per row.

        Raises:
            DataError: nobody asked it, for the metric does not say that it needs them.
        """
        if self._original is None:
            raise DataError("the original model's answers are only there for a metric with needs_original")
        return self._original

    def feed(self) -> dict[str, np.ndarray]:
        """All rows as one padded batch, which the model can run: take a few, as in ``rows[:8].feed()``."""
        return self.samples.batch(range(len(self.samples)))

    def column(self, names: Sequence[str], reader: str) -> str:
        """The first of ``names`` that is a column; ``reader`` names the metric that asks.

        Raises:
            DataError: none is.
        """
        found = next((name for name in names if name in self.samples.columns), None)
        if found is None:
            wanted, seen = " or ".join(names), ", ".join(sorted(self.samples.columns)) or "none"
            raise DataError(
                f"metric {reader!r} needs a column {wanted}; the data have {seen}: rename one, or take a "
                "metric that reads these (graphcompress metrics)"
            )
        return found

    def numbers(self, names: Sequence[str], reader: str) -> np.ndarray:
        """The numbers of :meth:`column`, one per row.

        Raises:
            DataError: there is no such column, or it holds something else.
        """
        name = self.column(names, reader)
        try:
            return np.asarray([float(value) for value in self.samples.columns[name]])
        except (TypeError, ValueError) as error:
            raise DataError(f"metric {reader!r}: column {name!r} must hold numbers ({error})") from error

    def of_words(self, answers: Iterable[Sequence[int]]) -> list[list[int]]:
        """The answers of the first token of each word, for rows of words; ``answers`` are those of tokens.

        Words that were cut off have none.
        """
        found = []
        for row, words in zip(answers, self.samples.columns[WORD_OF_TOKEN], strict=True):
            # Backwards: of the tokens of a word the first is written last, and stays.
            first = {word: token for token, word in reversed(list(enumerate(words))) if word >= 0}
            found.append([row[first[word]] for word in sorted(first)])
        return found

    def references(self, names: Sequence[str], reader: str) -> list[list[str]]:
        """The texts of :meth:`column`, a list of at least one for each row.

        Raises:
            DataError: there is no such column, or a row holds no text.
        """
        name = self.column(names, reader)
        found = []
        for row, value in enumerate(self.samples.columns[name], 1):
            texts = [value] if isinstance(value, str) else value
            if (
                not isinstance(texts, (list, tuple))
                or not texts
                or not all(isinstance(x, str) for x in texts)
            ):
                raise DataError(
                    f"metric {reader!r}: column {name!r} row {row} must be a text or a list of texts; got "
                    f"{value!r:.60}"
                )
            found.append(list(texts))
        return found

    def __len__(self) -> int:
        return len(self.samples) // self.samples.per_row

    @overload
    def __getitem__(self, index: int) -> Mapping[str, Any]: ...

    @overload
    def __getitem__(self, index: slice) -> Rows: ...

    def __getitem__(self, index: int | slice) -> Mapping[str, Any] | Rows:
        chosen = range(len(self))[index]
        if isinstance(chosen, int):
            return {name: values[chosen] for name, values in self.samples.columns.items()}
        return self.taken(chosen)

    def taken(self, rows: Sequence[int]) -> Rows:
        """The rows of these numbers, in that order."""
        original = None if self._original is None else self._original[list(rows)]
        return Rows(self.samples.rows(rows), original)
