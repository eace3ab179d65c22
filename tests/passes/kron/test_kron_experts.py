"""kron on experts: factors of each, of one split and rank."""

from __future__ import annotations

import numpy as np
import pytest
from experts_models import DENSE, EXPERTS, HIDDEN, LOOKED_UP, WIDTH, answers, mixture, rows, samples

from graphcompress.analysis.experts import all_experts
from graphcompress.passes.kron.kron import Kron
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter

FEEDS = (rows(1, 1), rows(3, 7, seed=1), rows(2, 33, seed=2))


@pytest.mark.parametrize("form", [DENSE, LOOKED_UP])
@pytest.mark.parametrize("given", [None, samples()])
def test_factored_experts_answer_like_their_dense_weights(form, given) -> None:
    model = mixture(form)
    names = {each.name for each in all_experts(model)}
    (record,) = Pipeline([Kron(ratio=0.5, only="*weight*")]).run(model, Context(given), allow=("kron",))
    assert {item.name for item in record.touched} == names
    assert len(names) == 4
    found = all_experts(model)
    assert {each.name for each in found} == names
    assert all(0 < each.parameters <= each.stack().size / 2 for each in found)
    factored = [answers(model, feed) for feed in FEEDS]
    with Rewriter(model, Context()) as rw:
        for each in found:
            rw.set_weight(each, rw.constant(each.stack(), f"{each.name}.dense"))
    assert all(each.weight.const_value is not None for each in all_experts(model))
    for feed, expected in zip(FEEDS, factored, strict=True):
        np.testing.assert_allclose(answers(model, feed), expected, rtol=1e-4, atol=1e-4)


def test_experts_that_are_kronecker_products_are_found_exactly() -> None:
    model = mixture(DENSE)
    rng = np.random.default_rng(1)
    shapes = ((4, 8), (WIDTH // 4, HIDDEN // 8))
    products = [np.kron(*(rng.normal(size=shape) for shape in shapes)) for _ in range(EXPERTS)]
    model.graph.initializers["up_weight0"].const_value = model.store(np.stack(products).astype(np.float32))
    before = [answers(model, feed) for feed in FEEDS]
    (record,) = Pipeline([Kron(only="up_weight0")]).run(model, Context())
    (touched,) = record.touched
    assert touched.parameters == EXPERTS * WIDTH * HIDDEN
    assert touched.figures["parameters_after"] == EXPERTS * (4 * 8 + WIDTH * HIDDEN // 32)
    assert f"rank 1 for each of {EXPERTS} experts" in touched.detail
    for feed, expected in zip(FEEDS, before, strict=True):
        np.testing.assert_allclose(answers(model, feed), expected, rtol=1e-3, atol=1e-3)


def test_experts_that_do_not_factor_are_left_with_the_error() -> None:
    model = mixture(DENSE)
    (record,) = Pipeline([Kron()]).run(model, Context())
    reasons = {item.name: item for item in record.skipped if "weight" in item.name}
    assert set(reasons) == {each.name for each in all_experts(model)}
    assert all("above max_error 0.04" in item.reason for item in reasons.values())
    assert all(0.3 < item.figures["error"] < 1 for item in reasons.values())
