"""text2text-generation: a translation, a summary or an answer for each text, and how near to a person's."""

from __future__ import annotations

import abc
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from graphcompress.data.rows import REFERENCE_COLUMNS, Rows
from graphcompress.data.texts import PROMPT_COLUMNS
from graphcompress.plugin.extras import needs
from graphcompress.plugin.options import option
from graphcompress.plugin.task import Figure, Metric, WritingTask

if TYPE_CHECKING:
    from sacrebleu.metrics.base import Metric as SacreBleu

RESAMPLES = 200
"""Bootstrap samples behind a standard error: it is known to one digit then."""


@dataclass(frozen=True)
class Text2TextGeneration(WritingTask):
    """One text for each text, by the search of generation_config.json (beams, penalties, lengths)."""

    name: ClassVar[str] = "text2text-generation"
    prompts: ClassVar[tuple[str, ...]] = PROMPT_COLUMNS


@dataclass(frozen=True)
class _Corpus(Metric):
    """A score of sacrebleu over all rows; its standard error is that of a bootstrap over the rows."""

    tasks: ClassVar[tuple[str, ...]] = (Text2TextGeneration.name, "image-to-text")
    noun: ClassVar[str] = "texts"
    columns: ClassVar[tuple[str, ...]] = REFERENCE_COLUMNS

    def check(self, rows: Rows) -> None:
        """Refuse references that are no texts.

        Raises:
            DataError: there are some.
            MissingExtraError: sacrebleu is not installed.
        """
        needs(f"metric {self.name!r}", "metrics", "sacrebleu")
        rows.references(self.columns, self.name)

    def figure(self, given: np.ndarray, rows: Rows) -> Figure:
        """Texts [rows] → the score from 0 to 100."""
        references = rows.references(self.columns, self.name)
        most = max(map(len, references))
        # sacrebleu wants the first references of all rows, then the second; None is one that a row lacks.
        turned = [[row[at] if at < len(row) else None for row in references] for at in range(most)]
        found: Any = self._scorer().corpus_score(list(given), turned, n_bootstrap=RESAMPLES)
        error = found._ci / 1.96 if len(rows) > 1 else None  # sacrebleu gives half of a 95 % interval
        return Figure(float(found.score), len(rows), None if error is None else float(error))

    def signature(self) -> str:
        """The text by which sacrebleu names its settings and version, to be printed beside a figure."""
        scorer = self._scorer()
        scorer.corpus_score(["a"], [["a"]])  # it knows the number of references after a score only
        return str(scorer.get_signature())

    @abc.abstractmethod
    def _scorer(self) -> SacreBleu:
        """Sacrebleu's metric with the options of this one."""


@dataclass(frozen=True)
class Bleu(_Corpus):
    """BLEU of sacrebleu (arXiv:1804.08771): n-grams of up to four words that a reference has, from 0 to 100.

    Upper and lower case differ, unless ``lowercase``; words are those of WMT's 13a.
    """

    name: ClassVar[str] = "bleu"
    label: ClassVar[str] = "BLEU"
    lowercase: bool = option(False, "upper and lower case are the same")
    tokenize: str = option("13a", "tokenizer of sacrebleu, such as 13a, intl, char or zh")

    def _scorer(self) -> SacreBleu:
        from sacrebleu.metrics.bleu import BLEU

        scorer: SacreBleu = BLEU(lowercase=self.lowercase, tokenize=self.tokenize)
        return scorer


@dataclass(frozen=True)
class Chrf(_Corpus):
    """chrF of sacrebleu (Popović, 2015): sequences of up to six characters, from 0 to 100."""

    name: ClassVar[str] = "chrf"
    label: ClassVar[str] = "chrF"
    words: int = option(0, "sequences of up to so many words count, too; 2 is chrF++", minimum=0)

    def _scorer(self) -> SacreBleu:
        from sacrebleu.metrics.chrf import CHRF

        scorer: SacreBleu = CHRF(word_order=self.words)
        return scorer


@dataclass(frozen=True)
class Rouge(Metric):
    """ROUGE by Google's rouge-score: mean F1 over the rows, from 0 to 1; the best reference counts."""

    name: ClassVar[str] = "rouge"
    tasks: ClassVar[tuple[str, ...]] = (Text2TextGeneration.name, "image-to-text")
    label: ClassVar[str] = "ROUGE"
    noun: ClassVar[str] = "texts"
    columns: ClassVar[tuple[str, ...]] = REFERENCE_COLUMNS
    kind: str = option("rougeL", "rouge1, rouge2, rougeL (longest common subsequence) or rougeLsum")
    stem: bool = option(True, "English word endings do not count")

    def check(self, rows: Rows) -> None:
        """Refuse references that are no texts.

        Raises:
            DataError: there are some.
            MissingExtraError: rouge-score is not installed.
        """
        needs(f"metric {self.name!r}", "metrics", "rouge_score")
        rows.references(self.columns, self.name)

    def figure(self, given: np.ndarray, rows: Rows) -> Figure:
        """Texts [rows] → the mean F1."""
        from rouge_score.rouge_scorer import RougeScorer

        scorer = RougeScorer([self.kind], use_stemmer=self.stem)
        references = rows.references(self.columns, self.name)
        scores = [
            max(scorer.score(reference, text)[self.kind].fmeasure for reference in texts)
            for text, texts in zip(given, references, strict=True)
        ]
        return Figure(float(np.mean(scores)), len(rows), mean_error(scores))


def mean_error(values: Sequence[float]) -> float | None:
    """Standard error of the mean of ``values``; None of one value."""
    if len(values) < 2:
        return None
    return float(np.std(values, ddof=1) / math.sqrt(len(values)))
