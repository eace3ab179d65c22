"""Which answers a model changed: those that flipped, or moved furthest, with their texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from graphcompress.data.rows import LABEL_COLUMNS, SCORE_COLUMNS, Rows
from graphcompress.data.texts import text_columns
from graphcompress.numerics.metrics import cosine

SHOWN_ANSWERS = 12
"""At most so many changed answers are kept: enough to see what kind they are of."""

LONGEST_TEXT = 240
"""A text is kept up to that many characters."""


@dataclass(frozen=True)
class ChangedAnswer:
    """One row whose answer the model changed.

    Attributes:
        row: its number in the data, from 1.
        text: what was asked, empty where the data hold no texts.
        label: what is right, where the data say it.
        before, after: the answers; empty for embeddings.
        distance: how far they are apart: 1 for another class, else a share of the range of all answers; of
            embeddings 1 less their cosine.
    """

    row: int
    text: str
    label: str
    before: str
    after: str
    distance: float


def changed_answers(before: object, after: object, rows: Rows) -> tuple[ChangedAnswer, ...]:
    """The answers that differ most, the worst first; none where they are not one array or list per row."""
    if not isinstance(before, np.ndarray) or not isinstance(after, np.ndarray):
        return ()
    distances = np.array([_distance(a, b) for a, b in zip(before, after, strict=True)])
    spread = float(np.ptp(before)) if _are_numbers(before) else 1.0
    distances = distances / (spread or 1.0)
    order = sorted(range(len(distances)), key=lambda row: (-distances[row], row))
    return tuple(
        _changed(rows[row], row, before[row], after[row], float(distances[row]))
        for row in order[:SHOWN_ANSWERS]
        if distances[row] > 0.0
    )


def without_texts(answer: ChangedAnswer) -> ChangedAnswer:
    """``answer`` without what the data say: question, label and answers may be private."""
    return replace(answer, text="", label="", before="", after="")


def _are_numbers(answers: np.ndarray) -> bool:
    return answers.ndim == 1 and np.issubdtype(answers.dtype, np.floating)


def _distance(a: Any, b: Any) -> float:  # noqa: ANN401 - an answer of any task
    if isinstance(a, np.ndarray) and a.ndim:
        return float(np.max(1.0 - cosine(a.astype(np.float64), b.astype(np.float64))).clip(0.0))
    if np.issubdtype(type(a), np.floating):
        return float(abs(a - b))
    if isinstance(a, (list, tuple)):
        return float(np.mean([x != y for x, y in zip(a, b, strict=False)] or [0.0]))
    return float(a != b)


def _changed(columns: Mapping[str, Any], row: int, a: Any, b: Any, distance: float) -> ChangedAnswer:  # noqa: ANN401
    names = text_columns({name: [value] for name, value in columns.items()})
    text = " | ".join(str(columns[name]) for name in names)[:LONGEST_TEXT]
    label = next((columns[name] for name in (*LABEL_COLUMNS, *SCORE_COLUMNS) if name in columns), "")
    return ChangedAnswer(row + 1, text, str(label)[:LONGEST_TEXT], _told(a), _told(b), distance)


def _told(answer: Any) -> str:  # noqa: ANN401 - an answer of any task
    if isinstance(answer, np.ndarray) and answer.ndim:
        return ""
    return f"{answer:.4g}" if np.issubdtype(type(answer), np.floating) else str(answer)[:LONGEST_TEXT]
