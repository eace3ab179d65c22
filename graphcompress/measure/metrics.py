"""Task metrics: how well a model does what it is for, before and after."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from graphcompress.data.load import Pair, Samples
from graphcompress.data.samples import padding_mask
from graphcompress.errors import DataError, UsageError, nearest
from graphcompress.graph.runtime import Feed
from graphcompress.measure.verify import Run
from graphcompress.numerics.metrics import cosine, spearman
from graphcompress.plugin.base import Progress, no_progress

BATCH = 16
SCORE_COLUMNS = ("score", "similarity", "similarity_score", "label")
LABEL_COLUMNS = ("label", "labels", "target")
UNLABELLED = -100
"""Label of a token that has none, as in PyTorch."""

Columns = Mapping[str, Sequence[Any]]


@dataclass(frozen=True)
class Score:
    """A figure with its count: ``Spearman 0.867 on 1,500 pairs``."""

    label: str
    value: float
    count: int
    noun: str

    def __str__(self) -> str:
        return f"{self.label} {self.value:.4f} on {self.count:,} {self.noun}"


@dataclass(frozen=True)
class Metric:
    """How outputs become a figure; higher is better.

    Attributes:
        name: what a user types.
        help: what is measured, from which outputs and which columns.
        label, noun: for the printed figure.
        pair: how a pair of texts is fed: as one sample or as two.
        answer: outputs of one batch and its feed → one answer per sample (array with the batch in front).
        score: answers, answers of the original model, columns, samples per row → the figure.
    """

    name: str
    help: str
    label: str
    noun: str
    pair: Pair
    answer: Callable[[Mapping[str, np.ndarray], Feed], np.ndarray]
    score: Callable[[np.ndarray, np.ndarray, Columns, int], float]


def metric(name: str) -> Metric:
    """The metric called ``name``.

    Raises:
        UsageError: there is none.
    """
    if name not in METRICS:
        raise UsageError(f"unknown metric {name!r}: {nearest(name, METRICS)}")
    return METRICS[name]


def answers(
    chosen: Metric, run: Run, samples: Samples, *, progress: Progress = no_progress, text: str = "evaluate"
) -> np.ndarray:
    """One answer per sample, in the order of the samples; run in batches of similar length."""
    order = samples.order(by_length=True)
    found: list[Any] = [None] * len(order)
    size = samples.batch_size(BATCH)
    for start in range(0, len(order), size):
        progress(text, start, len(order))
        indices = order[start : start + size]
        feed = samples.batch(indices)  # may be filled up to the size that the model fixes
        for index, answer in zip(indices, chosen.answer(run(feed), feed), strict=False):
            found[index] = answer
    progress(text, len(order), len(order))
    if any(isinstance(answer, list) for answer in found):
        return _ragged(found)
    return np.stack([answer for answer in found if answer is not None])


def score(chosen: Metric, given: np.ndarray, original: np.ndarray, samples: Samples) -> Score:
    """The figure for the answers ``given``; ``original`` are those of the model that came in.

    Raises:
        DataError: the data lack the column that the metric needs, or it does not hold numbers.
    """
    value = chosen.score(given, original, samples.columns, samples.per_row)
    return Score(chosen.label, value, len(samples) // samples.per_row, chosen.noun)


def check_columns(chosen: Metric, samples: Samples) -> None:
    """Fail before any work when the data cannot be scored.

    Raises:
        DataError: as :func:`score`.
    """
    if chosen.name == "similarity" and samples.per_row != 2:
        raise DataError("metric 'similarity' needs pairs of texts: columns sentence1, sentence2 and score")
    if chosen.name in ("similarity", "spearman"):
        _numbers(samples.columns, SCORE_COLUMNS, chosen.name)
    if chosen.name == "accuracy":
        name = _column(samples.columns, LABEL_COLUMNS, chosen.name)
        if not isinstance(samples.columns[name][0], (list, tuple, np.ndarray)):
            _numbers(samples.columns, LABEL_COLUMNS, chosen.name)


# ---- answers


def pooled(outputs: Mapping[str, np.ndarray], feed: Feed) -> np.ndarray:
    """Sentence embeddings [batch, width]: the first 3-D output averaged over the mask, or a 2-D one.

    The 2-D output is taken as it is, and only when there is no 3-D one.
    """
    hidden = next((array for array in outputs.values() if array.ndim == 3), None)
    if hidden is None:
        flat = next((array for array in outputs.values() if array.ndim == 2), None)
        if flat is None:
            raise DataError("metric 'similarity' needs an output [batch, sequence, width] or [batch, width]")
        return flat
    mask = padding_mask(feed)
    weights = np.ones(hidden.shape[:2]) if mask is None else mask.astype(np.float64)
    total = np.einsum("bsd,bs->bd", hidden.astype(np.float64), weights)
    return np.asarray(total / np.maximum(weights.sum(1, keepdims=True), 1.0))


def _classes(outputs: Mapping[str, np.ndarray], feed: Feed) -> np.ndarray:
    """Class of each sample (of each token, for a 3-D output): the largest entry; one logit is cut at 0."""
    logits = _first_float(outputs)
    if logits.ndim == 1 or logits.shape[-1] == 1:
        return (logits.reshape(len(logits), -1)[:, 0] > 0).astype(np.int64)
    classes = logits.argmax(-1)
    return classes if classes.ndim == 1 else _flat(classes, feed)


def _flat(classes: np.ndarray, feed: Feed) -> np.ndarray:
    """One list per sample: the classes of its real tokens, so that lengths may differ."""
    mask = padding_mask(feed)
    rows = [row if mask is None else row[mask[index]] for index, row in enumerate(classes)]
    return _ragged([row.tolist() for row in rows])


def _ragged(rows: Sequence[object]) -> np.ndarray:
    packed = np.empty(len(rows), dtype=object)
    for index, row in enumerate(rows):
        packed[index] = row
    return packed


def _regression(outputs: Mapping[str, np.ndarray], feed: Feed) -> np.ndarray:
    values = _first_float(outputs)
    if values.ndim > 2 or (values.ndim == 2 and values.shape[1] != 1):
        raise DataError(f"metric 'spearman' needs an output [batch] or [batch, 1], got {list(values.shape)}")
    return values.reshape(len(values))


def _first_float(outputs: Mapping[str, np.ndarray]) -> np.ndarray:
    found = next((a for a in outputs.values() if np.issubdtype(a.dtype, np.floating) and a.ndim), None)
    if found is None:
        raise DataError(f"the metric needs a floating-point output; the model has {sorted(outputs)}")
    return found


# ---- figures


def _similarity(given: np.ndarray, original: np.ndarray, columns: Columns, per_row: int) -> float:
    pairs = given.reshape(-1, per_row, given.shape[-1])
    return spearman(cosine(pairs[:, 0], pairs[:, 1]), _numbers(columns, SCORE_COLUMNS, "similarity"))


def _spearman(given: np.ndarray, original: np.ndarray, columns: Columns, per_row: int) -> float:
    return spearman(given, _numbers(columns, SCORE_COLUMNS, "spearman"))


def _accuracy(given: np.ndarray, original: np.ndarray, columns: Columns, per_row: int) -> float:
    if given.dtype != object:
        return float(np.mean(given == _numbers(columns, LABEL_COLUMNS, "accuracy")))
    name = _column(columns, LABEL_COLUMNS, "accuracy")
    pairs = [
        (answer, label)
        for row, (found, wanted) in enumerate(zip(given, columns[name], strict=True), 1)
        for answer, label in zip(found, _token_labels(name, row, wanted, len(found)), strict=True)
        if label != UNLABELLED
    ]
    return float(np.mean([answer == label for answer, label in pairs]))


def _token_labels(name: str, row: int, labels: object, tokens: int) -> list[Any]:
    if not isinstance(labels, (list, tuple, np.ndarray)) or len(labels) != tokens:
        raise DataError(
            f"metric 'accuracy': column {name!r} row {row} must be a list with a class for each of the "
            f"{tokens} tokens, {UNLABELLED} for one without a label; got {labels!r:.60}"
        )
    return list(labels)


def _agreement(given: np.ndarray, original: np.ndarray, columns: Columns, per_row: int) -> float:
    if given.dtype != object:
        return float(np.mean(given == original))
    agreed = [x == y for a, b in zip(given, original, strict=True) for x, y in zip(a, b, strict=True)]
    return float(np.mean(agreed))


def _column(columns: Columns, names: Sequence[str], metric_name: str) -> str:
    name = next((name for name in names if name in columns), None)
    if name is None:
        raise DataError(
            f"metric {metric_name!r} needs a column {' or '.join(names)}; the data have {sorted(columns)}"
        )
    return name


def _numbers(columns: Columns, names: Sequence[str], metric_name: str) -> np.ndarray:
    name = _column(columns, names, metric_name)
    try:
        return np.asarray([float(value) for value in columns[name]])
    except (TypeError, ValueError) as error:
        raise DataError(f"metric {metric_name!r}: column {name!r} must hold numbers ({error})") from error


METRICS = {
    item.name: item
    for item in (
        Metric(
            "similarity",
            "Spearman correlation of two sentence embeddings' cosine with the score column, as in STS-B; "
            "texts are embedded separately: mean pooling over the attention mask, or a 2-D output as it is",
            "Spearman",
            "pairs",
            "separate",
            pooled,
            _similarity,
        ),
        Metric(
            "spearman",
            "Spearman correlation of one regression output with the score column (cross-encoders)",
            "Spearman",
            "rows",
            "joint",
            _regression,
            _spearman,
        ),
        Metric(
            "accuracy",
            "share of rows (of tokens, for an answer per token) whose largest logit is the label column "
            "(one logit: above 0 means 1)",
            "accuracy",
            "rows",
            "joint",
            _classes,
            _accuracy,
        ),
        Metric(
            "agreement",
            "share of rows (of tokens, for an answer per token) whose largest logit is the original model's; "
            "needs no labels",
            "agreement with the original",
            "rows",
            "joint",
            _classes,
            _agreement,
        ),
    )
}
