"""A ratio of all blocks together, taken where the outputs lose least."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from pruned_models import pruned, sizes

from graphcompress.coupling.couplings import FFN, HEAD, couplings
from graphcompress.data.made_up import varied_samples
from graphcompress.files.parts import is_cache
from graphcompress.graph.model import Model
from graphcompress.numerics.metrics import divergences
from graphcompress.passes.prune import trial_model
from graphcompress.passes.prune.blocks import blocks_of
from graphcompress.passes.prune.goal_planner import GoalPlanner
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter


def planner_of(model, samples, **options) -> GoalPlanner:
    with Rewriter(model, Context()) as rw:
        blocks = [block for block in blocks_of(rw, couplings(model), "*") if block.plain]
    return GoalPlanner(model, blocks, Context(samples=samples), "obs", 8, refit=True, **options)


@pytest.mark.parametrize(("kind", "ratio"), [(FFN, 0.4), (FFN, 0.13), (FFN, 0.0), (HEAD, 0.25), (HEAD, 0.9)])
def test_no_other_choice_of_as_many_units_loses_less(tiny_bert, tiny_samples, kind, ratio):
    planner = planner_of(tiny_bert, tiny_samples, levels={FFN: (0.5, 0.9), HEAD: (0.5, 0.9)})
    removals = planner.shared_out(kind, ratio)
    curves = [curve for curve in planner.curves if curve.block.group.kind == kind]
    total = sum(curve.block.size for curve in curves)
    step = 8 if kind == FFN else 1
    wanted = int(ratio * total + 1e-9) // step * step
    wanted = min(wanted, sum(curve.block.size - step for curve in curves))
    gone = [len(removal.removed) for removal in removals]
    assert sum(gone) == wanted
    assert all(curve.block.size - number > 0 for curve, number in zip(curves, gone, strict=True))
    lost = sum(float(c.losses[list(c.gone).index(n)]) for c, n in zip(curves, gone, strict=True))
    options = [range(int(np.sum(curve.gone < curve.block.size))) for curve in curves]
    assert lost == min(
        sum(float(c.losses[o]) for c, o in zip(curves, chosen, strict=True))
        for chosen in itertools.product(*options)
        if sum(int(c.gone[o]) for c, o in zip(curves, chosen, strict=True)) >= wanted
    )


def test_what_is_lost_is_told_and_why_a_block_stays(tiny_bert, tiny_samples):
    record = pruned(tiny_bert, tiny_samples, ffn=0.125)
    assert sizes(tiny_bert, "ffn") in ([48, 64], [64, 48], [56, 56])
    assert any("squared error of the outputs on held-out samples" in note for note in record.notes)
    if 64 in sizes(tiny_bert, "ffn"):
        assert any("FFN nodes of other blocks cost less" in item.reason for item in record.skipped)


def test_the_cache_of_a_model_that_writes_is_no_answer(sequence_folders):
    """What counts are the scores of tokens; keys and values show in those of the same run."""
    model = Model.load(sequence_folders["llama"])
    Simplify().run(model, Context())
    planner = planner_of(model, varied_samples(model, seed=0))
    before, loss = planner.effect.aim
    assert any(is_cache(name) for name in before[0])
    assert loss.read == {"logits"}
    (curve, *_) = planner.curves
    block, count = curve.block, int(curve.gone[-1])
    fit = planner.trial.fits[block]
    masked = type(fit)(np.zeros_like(fit.weight), fit.bias)
    effects = planner.effect.one_by_one(planner.blocks)
    alone = next(effects)(masked)
    lost = []
    for feed, was in zip(planner.effect.trial.feeds, before, strict=True):
        found = planner.effect.run({block: masked}, feed)
        rows = (each["logits"].reshape(-1, each["logits"].shape[-1]) for each in (was, found))
        lost.append(divergences(*rows))
    assert count > 0
    assert alone == pytest.approx(float(np.concatenate(lost).mean()), rel=1e-3)
    assert loss.told(alone) == f"next tokens diverge by {alone:.3g} nats on held-out samples"


def test_as_many_samples_judge_as_it_takes(tiny_bert, tiny_samples, monkeypatch):
    every = planner_of(tiny_bert, tiny_samples).effect.trial.feeds
    monkeypatch.setattr(trial_model, "JUDGED_ROWS", 1)
    few = planner_of(tiny_bert, tiny_samples).effect.trial.feeds
    assert len(few) == 1 < len(every)
