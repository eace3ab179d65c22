"""The tasks that are shipped, and their metrics."""

from __future__ import annotations

import numpy as np
import pytest
import scipy.stats

from graphcompress.data.load import Samples
from graphcompress.errors import DataError, UsageError
from graphcompress.measure import metrics
from graphcompress.tasks.feature_extraction import FeatureExtraction
from graphcompress.tasks.token_classification import TokenClassification

RNG = np.random.default_rng(0)


def samples(lengths, columns=None, per_row=1):
    feeds = [
        {"input_ids": np.arange(1, size + 1) * (number + 1), "attention_mask": np.ones(size, np.int64)}
        for number, size in enumerate(lengths)
    ]
    return Samples(feeds, columns or {}, per_row=per_row)


def hidden(feed):
    """A model whose token vectors depend on the token alone, and whose padding would spoil a plain mean."""
    ids = feed["input_ids"].astype(np.float64)
    padding = 1 - feed["attention_mask"]
    return {"hidden": np.stack([np.sin(ids), np.cos(ids), np.sin(2 * ids)], -1) + 100.0 * padding[..., None]}


def test_similarity_is_spearman_of_cosines_of_masked_means():
    lengths = [3, 9, 5, 4, 12, 7, 6, 6]
    data = samples(lengths, {"score": [0.5, 3.0, "4.5", 1]}, per_row=2)
    similarity = metrics.metric("similarity")
    vectors = [
        hidden({key: array[None] for key, array in feed.items()})["hidden"][0].mean(0) for feed in data.feeds
    ]
    cosines = [
        a @ b / np.linalg.norm(a) / np.linalg.norm(b)
        for a, b in zip(vectors[::2], vectors[1::2], strict=True)
    ]
    given = metrics.answers(similarity, hidden, data)
    score = metrics.score(similarity, given, given, data)
    assert score.value == pytest.approx(scipy.stats.spearmanr(cosines, [0.5, 3.0, 4.5, 1]).statistic)
    assert str(score).endswith("on 4 pairs")


def test_a_2d_output_is_taken_as_it_is():
    feed = {"attention_mask": np.ones((2, 3), np.int64)}
    array = RNG.standard_normal((2, 5))
    assert FeatureExtraction().answers({"pooled": array}, feed) is array


def test_an_output_that_is_no_embedding_is_refused():
    with pytest.raises(DataError, match="needs an output"):
        FeatureExtraction().answers({"x": np.zeros(3)}, {})


def test_accuracy_counts_the_largest_logit_in_the_order_of_the_samples():
    data = samples([5, 2, 9, 3], {"label": ["1", 0, 1, 1]})
    accuracy = metrics.metric("accuracy")

    def run(feed):
        first = feed["input_ids"][:, 0]
        return {"logits": np.stack([np.zeros(len(first)), np.where(first % 2 == 0, 1.0, -1.0)], -1)}

    given = metrics.answers(accuracy, run, data)
    assert given.tolist() == [0, 1, 0, 1]
    assert metrics.score(accuracy, given, given, data).value == 0.25


def test_one_logit_is_cut_at_zero():
    data = samples([2, 2], {"label": [1, 0]})
    accuracy = metrics.metric("accuracy")
    given = metrics.answers(accuracy, lambda feed: {"logit": np.array([[3.0], [-1.0]])}, data)
    assert metrics.score(accuracy, given, given, data).value == 1.0


def test_spearman_takes_one_regression_output():
    data = samples([2, 4, 3], {"score": [1, 3, 2]})
    chosen = metrics.metric("spearman")
    given = metrics.answers(chosen, lambda feed: {"y": feed["input_ids"].sum(1, keepdims=True) * 1.0}, data)
    assert metrics.score(chosen, given, given, data).value == pytest.approx(
        scipy.stats.spearmanr(given, [1, 3, 2]).statistic
    )


def test_spearman_refuses_classes():
    chosen, data = metrics.metric("spearman"), samples([2], {"score": [1]})
    given = metrics.answers(chosen, lambda feed: {"y": np.zeros((1, 3))}, data)
    with pytest.raises(DataError, match=r"\[batch, 1\]"):
        metrics.score(chosen, given, given, data)


def test_a_single_logit_of_a_token_is_cut_at_zero():
    logits = np.array([[[1.0], [-2.0], [3.0]]])
    feed = {"attention_mask": np.array([[1, 1, 0]])}
    assert TokenClassification().answers({"logits": logits}, feed) == [[1, 0]]


def test_accuracy_of_tokens_leaves_out_those_without_a_label():
    data = samples([2, 3], {"labels": [[0, 1], [1, -100, 1]]})
    chosen = metrics.metric("accuracy")
    given = metrics.answers(chosen, lambda feed: {"x": np.eye(3)[feed["input_ids"] % 2]}, data)
    assert given.tolist() == [[1, 0], [0, 0, 0]]
    assert metrics.score(chosen, given, given, data).value == 0.0
    assert metrics.score(chosen, np.array([[0, 1], [1, 0, 0]], object), given, data).value == 3 / 4
    with pytest.raises(DataError, match="row 2 must be a list with a class for each of the 2 tokens"):
        metrics.score(chosen, np.array([[0, 1], [1, 0]], object), given, data)


def test_agreement_compares_tokens_and_leaves_padding_out():
    data = samples([2, 4])
    chosen = metrics.metric("agreement")

    def run(shift):
        def logits(feed):
            array = np.zeros((*feed["input_ids"].shape, 3))
            array[..., 0] = 1.0
            array[:, 0, 1] = shift
            return {"logits": array}

        return logits

    original = metrics.answers(chosen, run(0.0), data)
    other = metrics.answers(chosen, run(2.0), data)
    assert metrics.score(chosen, original, original, data).value == 1.0
    assert metrics.score(chosen, other, original, data).value == pytest.approx(4 / 6)


@pytest.mark.parametrize(
    ("name", "columns", "per_row", "message"),
    [
        ("similarity", {"score": [1]}, 1, "pairs of texts"),
        ("similarity", {"other": [1]}, 2, "needs a column score"),
        ("spearman", {"score": ["high"]}, 1, "must hold numbers"),
        ("accuracy", {}, 1, "needs a column label"),
    ],
)
def test_data_that_cannot_be_scored_are_refused_first(name, columns, per_row, message):
    with pytest.raises(DataError, match=message):
        metrics.Scoring(metrics.metric(name), samples([2] * per_row, columns, per_row))


def test_the_standard_error_is_how_far_a_figure_moves_from_sample_to_sample():
    count, found = 400, {"accuracy": [], "spearman": []}
    for _ in range(1000):
        labels, scores = RNG.integers(0, 2, count), RNG.standard_normal(count)
        data = samples([2] * count, {"label": labels, "score": scores})
        given = np.where(RNG.random(count) < 0.8, labels, 1 - labels)
        found["accuracy"].append(metrics.score(metrics.metric("accuracy"), given, given, data))
        close = scores + RNG.standard_normal(count)
        found["spearman"].append(metrics.score(metrics.metric("spearman"), close, close, data))
    for scores in found.values():
        spread = np.std([score.value for score in scores])
        assert np.mean([score.standard_error for score in scores]) == pytest.approx(spread, rel=0.1)


def test_errors_of_tokens_count_the_rows_that_they_share():
    """All tokens of a row are right or wrong together: the error is that of as many rows."""
    right = np.arange(100) % 4 > 0
    data = samples([5] * 100, {"label": [[1] * 5] * 100})
    given = np.empty(100, object)
    given[:] = [[int(row)] * 5 for row in right]
    score = metrics.score(metrics.metric("accuracy"), given, given, data)
    assert score.value == 0.75
    assert score.standard_error == pytest.approx(np.std(right, ddof=1) / 10)


def test_an_unknown_metric_names_the_nearest():
    with pytest.raises(UsageError, match="did you mean 'accuracy'"):
        metrics.metric("acuracy")
