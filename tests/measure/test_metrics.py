"""Which task answers for a metric, and what a metric is given."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import random_samples

from graphcompress.data.rows import Rows
from graphcompress.data.samples import Samples
from graphcompress.errors import DataError, UsageError
from graphcompress.graph.model import Model
from graphcompress.measure import metrics
from graphcompress.measure.bench import bench
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
    assert found == ["separate", None]
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


class Logits:
    """A classifier of two classes whose answers are given."""

    def __init__(self, right: np.ndarray) -> None:
        self.right = right

    def __call__(self, feed: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
        rows = feed["row"][:, 0].astype(int)
        return {"logits": np.stack([1.0 - self.right[rows], self.right[rows]], axis=1).astype(np.float32)}


def classified(before: np.ndarray, after: np.ndarray) -> metrics.Drop:
    """How much accuracy is lost where 1 is right of every row."""
    feeds = [{"row": np.array([index])} for index in range(len(before))]
    scoring = metrics.Scoring(metrics.metric("accuracy"), Samples(feeds, {"label": [1] * len(before)}))
    scoring.original(Logits(before))
    return scoring.judged(Logits(after))[1]


def test_the_error_of_a_drop_is_that_of_paired_rows() -> None:
    rng = np.random.default_rng(0)
    before = (rng.random(2000) < 0.9).astype(float)
    after = np.where(rng.random(2000) < 0.02, 1 - before, before)
    drop = classified(before, after)
    assert drop.value == pytest.approx(np.mean(before - after))
    assert drop.share == pytest.approx(np.mean(before - after) / np.mean(before))
    paired = np.std(before - after, ddof=1) / np.sqrt(2000)
    assert drop.standard_error == pytest.approx(paired, rel=0.3)
    assert drop.standard_error < np.std(before, ddof=1) / np.sqrt(2000) / 1.5


def test_a_movement_within_its_error_is_said_to_be_one() -> None:
    before = np.ones(40)
    before[:20] = 0
    after = before.copy()
    after[0], after[39] = 1, 0
    drop = classified(before, after)
    assert (drop.value, drop.within_error) == (0.0, True)
    assert not classified(before, np.zeros(40)).within_error


def test_nothing_is_judged_before_the_original() -> None:
    scoring = metrics.Scoring(metrics.metric("agreement"), random_samples(8))
    with pytest.raises(UsageError, match="the original is scored first"):
        scoring.judged(Logits(np.ones(8)))


@pytest.mark.parametrize(
    ("sample", "fixed", "labels"),
    [
        ({"pixel_values": (3, 8, 8)}, {"pixel_values": (None, 3, 8, 8)}, ["1×3×8×8", "8×3×8×8"]),
        ({"input_features": (80, 30)}, {"input_features": (None, 80, None)}, ["1×80×30", "8×80×30"]),
        (
            {"input_features": (30, 80)},
            {"input_features": (None, None, 80)},
            ["1×30 (natural)", "1×4", "8×4"],
        ),
        ({"input_ids": (7,)}, {}, ["1×7 (natural)", "1×4", "8×4"]),
    ],
)
def test_only_sequences_are_timed_at_lengths(
    sample: dict[str, tuple[int, ...]], fixed: dict[str, tuple[int | None, ...]], labels: list[str]
) -> None:
    feeds = [{name: np.ones(shape, np.float32) for name, shape in sample.items()}]
    run = {"before": lambda feed: {"y": feed[next(iter(sample))]}}
    results = bench(run, Samples(feeds, fixed=fixed), shapes=["1xnatural", "1x4", "8x4"], rounds=1)
    assert [result.shape for result in results] == labels
    assert all(result.timings for result in results)
