"""Values that are computed stage by stage are those of the whole model, and nothing is computed twice."""

from __future__ import annotations

import numpy as np
import pytest
from conftest import random_samples

from graphcompress.analysis.linears import linears
from graphcompress.coupling.couplings import couplings
from graphcompress.cutting import stages
from graphcompress.cutting.excerpt import between
from graphcompress.cutting.stages import Stages
from graphcompress.graph.runner import Runner
from graphcompress.numerics.least_squares import LinearMap
from graphcompress.passes.prune.blocks import blocks_of
from graphcompress.passes.prune.trial_model import Effect, TrialModel
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter


@pytest.fixture
def trial(tiny_bert):
    with Rewriter(tiny_bert, Context()) as rw:
        blocks = blocks_of(rw, couplings(tiny_bert), "*")
    return TrialModel(tiny_bert, blocks, random_samples(6))


def test_every_stage_begins_where_the_one_before_ended(tiny_bert, monkeypatch):
    wanted = [[linear.input, linear.output] for linear in linears(tiny_bert)]
    sizes = []

    def counted(*given):
        needed, part = between(*given)
        sizes.append(len(list(part.graph)))
        return needed, part

    monkeypatch.setattr(stages, "between", counted)
    feeds = list(random_samples(6).batches(2))
    found = Stages(tiny_bert, feeds, wanted)
    with Runner(tiny_bert, [value for stage in wanted for value in stage]) as runner:
        expected = [runner(feed) for feed in feeds]
    for stage in wanted:
        for now, was in zip(found.next({}), expected, strict=True):
            assert now.keys() == {value.name for value in stage}
            for name, array in now.items():
                np.testing.assert_allclose(array, was[name], atol=1e-5)
    # What is made of the mask and of sizes alone is computed anew, by few nodes.
    assert sum(sizes) < 1.3 * len(list(tiny_bert.graph))


def test_what_is_made_of_inputs_that_changed_is_computed_anew(trial):
    (first, *_, last), zero = trial.fits, {}
    stage = [reader.input for reader in trial.readers[last]]
    found = Stages(trial.twin, trial.feeds, [stage, stage])
    before = [next(iter(each.values())) for each in found.next(trial.given({}))]
    found.changed(trial.inputs(first))
    zero[first] = LinearMap(0 * trial.fits[first].weight, trial.fits[first].bias)
    after = [next(iter(each.values())) for each in found.next(trial.given(zero))]
    with Runner(trial.twin, stage) as runner:
        whole = [runner({**feed, **trial.given(zero)})[stage[0].name] for feed in trial.feeds]
    for was, now, expected in zip(before, after, whole, strict=True):
        np.testing.assert_allclose(now, expected, atol=1e-5)
        assert np.abs(now - was).max() > 0.01


def test_what_one_block_changes_is_seen_from_it_on(trial):
    effect, blocks = Effect(trial), list(trial.fits)
    for block, changes in zip(blocks, effect.one_by_one(blocks), strict=True):
        fit = LinearMap(0.5 * trial.fits[block].weight, trial.fits[block].bias)
        assert changes(fit) == pytest.approx(effect({block: fit}), rel=1e-4)
        assert changes(trial.fits[block]) < 1e-10 < changes(fit)
