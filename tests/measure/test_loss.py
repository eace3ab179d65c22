"""One number for what the outputs of a changed model lose."""

from __future__ import annotations

import numpy as np
import pytest

from graphcompress.measure.loss import OutputLoss, rows_read
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
