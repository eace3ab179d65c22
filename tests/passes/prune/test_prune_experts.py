"""prune on experts: each loses FFN nodes of its own, exactly where they are dead."""

from __future__ import annotations

import numpy as np
import pytest
from experts_models import DENSE, EXPERTS, HIDDEN, LOOKED_UP, WIDTH, answers, mixture, rows, samples

from graphcompress.analysis.experts import all_experts
from graphcompress.coupling.couplings import FFN, couplings
from graphcompress.cutting.aligned_experts import align
from graphcompress.graph.match import array_of
from graphcompress.graph.model import Model
from graphcompress.passes.prune.blocks import blocks_of
from graphcompress.passes.prune.prune import Prune
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter

FEEDS = (rows(1, 1), rows(3, 7, seed=1), rows(2, 33, seed=2))

# The answers of the experts are mixed before they are read: node 3 of one expert meets node 3 of another.
MIXED = DENSE.replace("act{n} = Relu(up{n})", "p{n} = Relu(up{n}) act{n} = Softmax <axis = 1> (p{n})")


def kill(model: Model, dead: list[list[int]]) -> None:
    """Let the readers of all blocks not listen to the nodes ``dead`` of each expert."""
    for each in all_experts(model):
        if not each.name.startswith("down"):
            continue
        stack = each.stack().copy()
        for expert, nodes in enumerate(dead):
            stack[expert, nodes] = 0.0
        each.weight.const_value = model.store(stack)


def widths(model: Model) -> list[int]:
    return [each.in_features for each in all_experts(model) if each.name.startswith("down")]


@pytest.mark.parametrize("form", [DENSE, LOOKED_UP])
def test_dead_nodes_go_exactly_wherever_each_expert_has_them(form) -> None:
    model = mixture(form)
    rng = np.random.default_rng(5)
    kill(model, [sorted(rng.permutation(HIDDEN)[:24].tolist()) for _ in range(EXPERTS)])
    before = [answers(model, feed) for feed in FEEDS]
    (record,) = Pipeline([Prune()]).run(model, Context())
    assert widths(model) == [HIDDEN - 24] * 2
    assert {item.detail for item in record.touched} == {f"24 of {HIDDEN} FFN nodes removed from each expert"}
    for feed, expected in zip(FEEDS, before, strict=True):
        np.testing.assert_allclose(answers(model, feed), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("form", [DENSE, LOOKED_UP])
@pytest.mark.parametrize("importance", ["magnitude", "activation", "obs"])
def test_pruned_experts_answer_like_masked_ones(form, importance) -> None:
    model = mixture(form)
    Prune(ffn=0.25, importance=importance).run(model, Context(samples=samples()))
    kept = {each.name: each.stack() for each in all_experts(model)}
    assert widths(model) == [HIDDEN * 3 // 4] * 2
    masked = mixture(form)
    for each in all_experts(masked):
        if each.name.startswith("down"):
            full = each.stack().copy()
            for expert, matrix in enumerate(full):
                there = {row.tobytes() for row in kept[each.name][expert]}
                matrix[[row.tobytes() not in there for row in matrix]] = 0.0
                assert np.any(matrix != 0, axis=1).sum() == HIDDEN * 3 // 4
            each.weight.const_value = masked.store(full)
    for feed in FEEDS:
        np.testing.assert_allclose(answers(model, feed), answers(masked, feed), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(("form", "aligned"), [(DENSE, True), (LOOKED_UP, True), (MIXED, False)])
def test_an_order_of_its_own_is_exact_and_can_be_undone(form, aligned) -> None:
    model = mixture(form)
    groups = [group for group in couplings(model) if group.kind == FFN]
    stored = {value.name: array_of(value) for value in model.initializers()}
    before = [answers(model, feed) for feed in FEEDS]
    with Rewriter(model, Context()) as rw:
        done = [align(rw, block.group, block.reader) for block in blocks_of(rw, groups, "*")]
    assert [bool(each.before) for each in done] == [aligned] * len(done)
    for feed, expected in zip(FEEDS, before, strict=True):
        np.testing.assert_allclose(answers(model, feed), expected, rtol=1e-4, atol=1e-4)
    changed = {v.name for v in model.initializers() if not np.array_equal(array_of(v), stored[v.name])}
    assert bool(changed) == aligned
    for each in done:
        each.undo()
    for value in model.initializers():
        np.testing.assert_array_equal(array_of(value), stored[value.name])


def test_what_is_not_cut_keeps_its_order() -> None:
    model = mixture(DENSE)
    before = {each.name: each.stack() for each in all_experts(model)}
    (record,) = Pipeline([Prune()]).run(model, Context())
    assert not record.touched
    assert {item.name for item in record.skipped} >= set(before)
    for each in all_experts(model):
        np.testing.assert_array_equal(each.stack(), before[each.name])
    assert widths(model) == [HIDDEN, HIDDEN]
    assert all(each.in_features == WIDTH for each in all_experts(model) if each.name.startswith("up"))
