"""A task and a metric: which answers a person gets from a model, and how good they are."""

from __future__ import annotations

import abc
import re
from collections.abc import Collection, Iterable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

from graphcompress.errors import DataError, UsageError
from graphcompress.plugin.base import Named

if TYPE_CHECKING:
    import numpy as np

    from graphcompress.data.rows import Rows

_OWN = re.compile(r"(.+\.py):(\w+)")
Pair = Literal["joint", "separate", "windows"]
"""How the two texts of a row are fed: as one sample; as two; or as one for each window of the second text."""

MAX_LENGTH = 128
"""Texts are cut after this many tokens where nothing else is said: enough for sentences and their pairs."""
WINDOW_TOKENS = 384
"""Tokens of a window with its question where nothing else is said, as in SQuAD's recipe."""


def check_max_length(given: object) -> None:
    """Refuse a largest number of tokens that is none; None is the default.

    Raises:
        UsageError: it is one.
    """
    if given is not None and (type(given) is not int or given < 1):
        raise UsageError(f"max_length {given!r}: give a number of tokens, such as 256")


_PAIRS: Mapping[Pair, str] = {
    "joint": "one sample",
    "separate": "two samples",
    "windows": "a sample for each window of the second text",
}


@dataclass(frozen=True)
class Task(Named, abc.ABC):
    """What a model is for: how its rows are fed, and the answers that a person gets from its outputs.

    It is named like the pipeline of Hugging Face.
    """

    outputs: ClassVar[tuple[str, ...]]
    """Globs over the names that exporters give to its outputs: they decide where the shape alone does not."""
    pair: ClassVar[Pair] = "joint"

    @classmethod
    def about(cls) -> Mapping[str, object]:
        """How pairs of texts are fed."""
        return {"a pair of texts": _PAIRS[cls.pair]}

    @abc.abstractmethod
    def suits(self, ranks: Mapping[str, int]) -> bool:
        """Whether a model can have this task whose floating-point outputs have these names and ranks."""

    @abc.abstractmethod
    def answers(self, outputs: Mapping[str, np.ndarray], feed: Mapping[str, np.ndarray]) -> Iterable[Any]:
        """One answer for each sample of a batch: ``outputs`` are what the model made of ``feed``.

        Raises:
            DataError: the outputs are not those of this task.
        """


@dataclass(frozen=True)
class WritingTask(Task):
    """A task whose answers the model writes, token by token: a text for each row.

    It is for models of several files, or with past keys and values; what they write is generated as
    ``graphcompress generate`` does it.
    """

    outputs: ClassVar[tuple[str, ...]] = ()
    prompts: ClassVar[tuple[str, ...]]
    """Columns of what the model is given; the first of them that the data have is taken."""

    @classmethod
    def about(cls) -> Mapping[str, object]:
        """What the model is given."""
        return {"reads": f"a column {' or '.join(cls.prompts)}"}

    @classmethod
    def fits(cls, encoded: Collection[str] | None) -> bool:
        """Whether a model may have this task whose encoder reads such inputs; None: a decoder alone."""
        return True

    def suits(self, ranks: Mapping[str, int]) -> bool:
        """No single pass gives such answers."""
        return False

    def answers(self, outputs: Mapping[str, np.ndarray], feed: Mapping[str, np.ndarray]) -> Iterable[Any]:
        """Refuse: the outputs of one pass are no answer.

        Raises:
            DataError: always.
        """
        raise DataError(
            f"task {self.name!r}: its answers are written step by step; give a folder with the parts of a "
            "model that writes"
        )


@dataclass(frozen=True)
class Figure:
    """What a metric found.

    Attributes:
        value: the figure.
        count: how many rows (or whatever the metric calls its ``noun``) it stands on.
        standard_error: of ``value``, where it is defined.
    """

    value: float
    count: int
    standard_error: float | None = None


@dataclass(frozen=True)
class Metric(Named, abc.ABC):
    """How good answers are: answers of a model and the rows that they are to become a figure.

    Attributes:
        tasks: names of the tasks whose answers it takes; empty: of any.
        label, noun: what is printed, as in ``accuracy 0.91 on 872 rows``.
        higher_is_better: which of two figures is the better one.
        columns: names of the column that it needs; the first of them that the data have is taken.
        needs_original: whether it reads ``rows.original``, the answers of the model that came in.
        given: what it is given: one answer per row, or the function from a feed to the outputs of the model,
            or the :class:`graphcompress.generation.generator.Generator` of a model that writes.
    """

    tasks: ClassVar[tuple[str, ...]] = ()
    label: ClassVar[str]
    noun: ClassVar[str] = "rows"
    higher_is_better: ClassVar[bool] = True
    columns: ClassVar[tuple[str, ...]] = ()
    needs_original: ClassVar[bool] = False
    given: ClassVar[Literal["answers", "run", "generator"]] = "answers"

    @classmethod
    def about(cls) -> Mapping[str, object]:
        """Its tasks, which direction is better, and what it needs."""
        needs = [f"a column {' or '.join(cls.columns)}"] if cls.columns else []
        needs += ["the answers of the original model"] if cls.needs_original else []
        return {
            "tasks": " and ".join(cls.tasks) or "any",
            "better": "higher" if cls.higher_is_better else "lower",
            "needs": " and ".join(needs) or "nothing but the rows",
        }

    def check(self, rows: Rows) -> None:
        """Fail before any work when ``rows`` cannot be scored.

        Raises:
            DataError: the column is missing.
        """
        if self.columns:
            rows.column(self.columns, self.name)

    @abc.abstractmethod
    def figure(self, given: Any, rows: Rows) -> Figure:  # noqa: ANN401 - typed by the attribute ``given``
        """The figure of ``given`` on ``rows``.

        Raises:
            DataError: the rows or the answers are not what this metric takes.
        """


def own_metric(text: str) -> tuple[str, str]:
    """File and function of a metric that is typed as ``my_file.py:function``; two empty texts for another."""
    match = _OWN.fullmatch(text)
    return (match[1], match[2]) if match else ("", "")
