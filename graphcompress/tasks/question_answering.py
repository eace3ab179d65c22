"""question-answering: a place in a text for each question, and whether a person would have marked it, too."""

from __future__ import annotations

import abc
import re
import string
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from graphcompress.data.rows import Rows
from graphcompress.data.samples import QUESTION, padding_mask
from graphcompress.data.spans import OFFSETS, tells_a_span
from graphcompress.errors import DataError
from graphcompress.plugin.options import option
from graphcompress.plugin.task import Figure, Metric, Pair, Task

CANDIDATES = 20
"""So many of the likeliest first and last tokens are tried in a window, as in SQuAD's recipe."""


@dataclass(frozen=True)
class QuestionAnswering(Task):
    """For each window of a text the logits of where an answer begins and ends: two lists, padding left out.

    A metric finds the best place over all windows of a question, and cuts it out of the text.
    """

    name: ClassVar[str] = "question-answering"
    outputs: ClassVar[tuple[str, ...]] = ("*start*", "*end*")
    pair: ClassVar[Pair] = "windows"

    def suits(self, ranks: Mapping[str, int]) -> bool:
        """Whether there are an output for the start and one for the end, with a number per token."""
        return tells_a_span(ranks)

    def answers(
        self, outputs: Mapping[str, np.ndarray], feed: Mapping[str, np.ndarray]
    ) -> list[list[list[float]]]:
        """Logits of start and end, [tokens] each, for every window.

        Raises:
            DataError: there are no such outputs.
        """
        names = [next((name for name in outputs if part in name), None) for part in ("start", "end")]
        if None in names:
            raise DataError(
                f"task {self.name!r} needs outputs for start and end; the model has {sorted(outputs)}"
            )
        start, end = (np.asarray(outputs[name or ""]) for name in names)
        mask = padding_mask(feed)
        kept = np.ones(start.shape, bool) if mask is None else mask
        return [[s[k].tolist(), e[k].tolist()] for s, e, k in zip(start, end, kept, strict=True)]


@dataclass(frozen=True)
class _Squad(Metric):
    """A mean over questions of how near an answer is to the nearest reference, as SQuAD's script finds it.

    References are a list of texts, or a mapping with such a list under ``text``; a question without one has
    no answer in the text, which the first token of a window stands for.
    """

    tasks: ClassVar[tuple[str, ...]] = (QuestionAnswering.name,)
    noun: ClassVar[str] = "questions"
    columns: ClassVar[tuple[str, ...]] = ("answers", "answer", "references", "reference")
    longest: int = option(30, "tokens of an answer at most", minimum=1)

    def check(self, rows: Rows) -> None:
        """Refuse rows that are no windows of a question and a context, and references that are no texts.

        Raises:
            DataError: they are.
        """
        if OFFSETS not in rows.samples.columns:
            raise DataError(f"metric {self.name!r} needs columns question, context and answers")
        name = rows.column(self.columns, self.name)
        for value in rows.samples.columns[name]:
            _references(value, name)

    def figure(self, given: np.ndarray, rows: Rows) -> Figure:
        """Logits of windows [windows] → the mean over the questions."""
        columns = rows.samples.columns
        wanted = columns[rows.column(self.columns, self.name)]
        # The context of a question is called sentence in QNLI.
        context = columns["context" if "context" in columns else "sentence"]
        references = [_references(value, "answers") for value in wanted]
        may_be_none = not all(references)
        windows: dict[int, list[int]] = {}
        for window, question in enumerate(columns[QUESTION]):
            windows.setdefault(question, []).append(window)
        scores = []
        for chosen in windows.values():
            places = [self._best(given[window], columns[OFFSETS][window]) for window in chosen]
            # Most windows of a long text hold no answer: the one that is least sure of that decides.
            nothing = min(given[window][0][0] + given[window][1][0] for window in chosen)
            score, (start, end) = max(places)
            found = context[chosen[0]][start:end] if score > (nothing if may_be_none else -np.inf) else ""
            scores.append(max(self._score(found, text) for text in references[chosen[0]] or [""]))
        error = float(np.std(scores, ddof=1) / np.sqrt(len(scores))) if len(scores) > 1 else None
        return Figure(float(np.mean(scores)), len(scores), error)

    def _best(
        self, logits: Sequence[Sequence[float]], offsets: Sequence[tuple[int, int] | None]
    ) -> tuple[float, tuple[int, int]]:
        """Score of the likeliest answer in a window, and where it lies in the text."""
        first, last = (sorted(range(len(row)), key=row.__getitem__)[-CANDIDATES:] for row in logits)
        found = (-np.inf, (0, 0))
        for start in first:
            for end in last:
                begin, finish = offsets[start], offsets[end]
                # Tokens of the question and special ones have no place in the text.
                if begin and finish and start <= end < start + self.longest:
                    found = max(found, (logits[0][start] + logits[1][end], (begin[0], finish[1])))
        return found

    @abc.abstractmethod
    def _score(self, found: str, wanted: str) -> float:
        """How far the answer ``found`` is the reference ``wanted``, 0 to 100."""


@dataclass(frozen=True)
class SquadExactMatch(_Squad):
    """Share of the questions whose answer is a reference; case, punctuation and articles do not count."""

    name: ClassVar[str] = "squad-em"
    label: ClassVar[str] = "exact match"

    def _score(self, found: str, wanted: str) -> float:
        return float(_plain(found) == _plain(wanted))


@dataclass(frozen=True)
class SquadF1(_Squad):
    """Mean F1 of the words that an answer shares with the nearest reference (arXiv:1606.05250)."""

    name: ClassVar[str] = "squad-f1"
    label: ClassVar[str] = "F1"

    def _score(self, found: str, wanted: str) -> float:
        own, true = _plain(found).split(), _plain(wanted).split()
        # Without words there is no share of words: as in SQuAD's script two empty texts agree.
        if not own or not true:
            return float(own == true)
        shared = sum((Counter(own) & Counter(true)).values())
        return 2 * shared / (len(own) + len(true))


def _references(value: Any, name: str) -> list[str]:  # noqa: ANN401 - what a data file holds
    texts = value.get("text") if isinstance(value, Mapping) else value
    texts = [texts] if isinstance(texts, str) else texts
    if not isinstance(texts, (list, tuple)) or any(type(text) is not str for text in texts):
        raise DataError(
            f"column {name!r} must hold texts, or a mapping with a list of them under text; got {value!r:.60}"
        )
    return list(texts)


def _plain(text: str) -> str:
    """Lower case, without punctuation, articles and double spaces."""
    kept = "".join(letter for letter in text.lower() if letter not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", kept).split())
