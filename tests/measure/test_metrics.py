"""Which task answers for a metric, and what a metric is given."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import random_samples

from graphcompress.data.rows import Rows
from graphcompress.errors import DataError, UsageError
from graphcompress.graph.model import Model
from graphcompress.measure import metrics
from graphcompress.plugin.task import Figure, Metric


class Longest(Metric):
    """How many entries the longest answer has; of any task."""

    name, label, higher_is_better = "longest", "length", False

    def figure(self, given: np.ndarray, rows: Rows) -> Figure:
        return Figure(float(max(map(np.size, given))), len(rows))


@pytest.mark.parametrize(
    ("metric", "ranks", "task"),
    [
        ("accuracy", {"y": 2}, "text-classification"),
        ("accuracy", {"y": 3}, "token-classification"),
        ("spearman", {"y": 3}, "text-classification"),
        ("similarity", {"logits": 3}, "feature-extraction"),
        ("longest", {"logits": 2}, "text-classification"),
        ("longest", {"logits": 3}, "token-classification"),
        ("longest", {"last_hidden_state": 3, "pooler_output": 2}, "feature-extraction"),
    ],
)
def test_the_outputs_say_the_task(metric: str, ranks: dict[str, int], task: str) -> None:
    chosen = Longest() if metric == "longest" else metrics.metric(metric)
    assert metrics.task_of(chosen, ranks).name == task


@pytest.mark.parametrize(
    ("ranks", "problem"), [({"y": 3}, "several of the tasks"), ({}, "none of the tasks")]
)
def test_outputs_that_say_no_task_are_refused(ranks: dict[str, int], problem: str) -> None:
    with pytest.raises(UsageError, match=problem):
        metrics.task_of(Longest(), ranks)


def test_pairs_are_fed_as_the_task_of_the_metric_wants_them(tiny_bert: Model) -> None:
    found = [metrics.pair_for(metrics.metric(name), tiny_bert) for name in ("similarity", "accuracy")]
    assert found == ["separate", "joint"]
    assert metrics.pair_for(Longest(), tiny_bert) == "separate"


def test_the_original_is_scored_first_and_the_others_against_it() -> None:
    scoring = metrics.Scoring(metrics.metric("agreement"), random_samples(8))
    assert scoring.original(lambda feed: {"y": np.eye(2)[feed["input_ids"][:, 0] % 2]}).value == 1.0
    assert scoring(lambda feed: {"y": np.eye(2)[1 - feed["input_ids"][:, 0] % 2]}).value == 0.0
    assert str(scoring(lambda feed: {"y": np.eye(2)[feed["input_ids"][:, 0] % 2]})).endswith("on 8 rows")


def test_rows_are_dicts_and_slices_are_rows() -> None:
    samples = random_samples(4)
    rows = Rows(metrics_rows(samples, {"label": [3, 4]}), np.array([[1, 2], [3, 4]]))
    assert [dict(row) for row in rows] == [{"label": 3}, {"label": 4}]
    assert rows[-1] == {"label": 4}
    part = rows[1:]
    assert (len(part), part[0], part.original.tolist()) == (1, {"label": 4}, [[3, 4]])
    assert np.array_equal(part.feed()["input_ids"], samples.batch([2, 3])["input_ids"])
    with pytest.raises(IndexError):
        _ = rows[2]
    with pytest.raises(DataError, match="needs_original"):
        _ = Rows(samples).original


def metrics_rows(samples, columns):
    """Two samples for each row."""
    return type(samples)(samples.feeds, columns, per_row=2)
