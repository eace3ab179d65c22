"""One number for what the outputs of a changed model lose."""

from __future__ import annotations

import numpy as np
import pytest

from graphcompress.measure.loss import OutputLoss, rows_read
from graphcompress.measure.verify import is_read_last
from graphcompress.numerics.metrics import divergences


def outputs(seed: int, **shapes: tuple[int, ...]) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.standard_normal(shape).astype(np.float32) for name, shape in shapes.items()}


LLM = {"logits": (1, 5, 7), "present.0.key": (1, 2, 5, 4)}


def test_of_scores_of_tokens_it_is_their_mean_divergence_whatever_the_cache_does() -> None:
    before, after = ([outputs(seed, **LLM) for seed in seeds] for seeds in ((0, 1), (2, 3)))
    loss = OutputLoss(before)
    found = sum(loss(b, a, loss.read) for a, b in zip(before, after, strict=True))
    pairs = [(a["logits"][0], b["logits"][0]) for a, b in zip(before, after, strict=True)]
    assert loss.by_token
    assert loss.read == {"logits"}
    assert found == pytest.approx(np.mean([divergences(a, b) for a, b in pairs]))
    assert rows_read(before[0]) == 5


def test_beside_another_output_it_is_a_share_of_the_spread() -> None:
    before = [outputs(0, logits=(1, 5, 7), last_hidden_state=(1, 5, 3))]
    loss = OutputLoss(before)
    assert not loss.by_token
    assert loss.read == {"logits", "last_hidden_state"}
    zero = {name: np.broadcast_to(a.mean(axis=(0, 1)), a.shape) for name, a in before[0].items()}
    assert loss(zero, before[0], loss.read) == pytest.approx(2.0, rel=1e-5)


def test_caches_count_where_nothing_else_is_there_and_nothing_is_no_token() -> None:
    cache = [outputs(0, **{"present.0.key": (1, 2, 5, 4)})]
    assert OutputLoss(cache).read == {"present.0.key"}
    nothing = OutputLoss([{"logits": np.zeros((1, 5, 7), np.float32)}])
    assert not nothing.read
    assert not nothing.by_token


def test_an_answer_that_is_no_number_is_worse_than_any_other() -> None:
    before = [outputs(0, pooled=(4, 3)), outputs(0, **LLM)]
    for each in before:
        loss, broken = OutputLoss([each]), {name: array.copy() for name, array in each.items()}
        (name,) = loss.read
        broken[name][..., 0] = np.nan
        zero = {name: np.zeros_like(array) for name, array in each.items()}
        assert loss(zero, each, loss.read) < 1e9 < loss(broken, each, loss.read) < np.inf


def test_what_was_no_number_before_counts_for_nothing() -> None:
    (before,) = [outputs(0, places=(4, 3))]
    before["places"][:, 1] = -np.inf
    loss = OutputLoss([before])
    assert loss(before, before, loss.read) == 0.0
    assert loss({"places": np.where(np.isfinite(before["places"]), 0.0, np.nan)}, before, loss.read) > 0.0


def test_an_axis_that_varies_has_one_mean_and_attention_maps_are_for_looking_inside() -> None:
    before = [outputs(length, end_logits=(2, length), attentions=(2, 2, length, length)) for length in (3, 5)]
    loss = OutputLoss(before)
    assert loss.read == {"end_logits"}
    mean = np.concatenate([each["end_logits"].ravel() for each in before]).mean()
    flat = sum(loss({"end_logits": np.full_like(b["end_logits"], mean)}, b, loss.read) for b in before)
    assert flat == pytest.approx(1.0, rel=1e-5)


@pytest.mark.parametrize(
    ("name", "last"),
    [
        ("hidden_states.3", True),
        ("cross_attentions", True),
        ("step/present.0.key", True),
        ("last_hidden_state", False),
        ("sentence_representation", False),
    ],
)
def test_outputs_for_looking_inside_are_known_by_whole_words(name: str, last: bool) -> None:
    assert is_read_last(name) == last
