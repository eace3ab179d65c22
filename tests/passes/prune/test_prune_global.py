"""A ratio of all blocks together, taken where the outputs lose least."""

from __future__ import annotations

import itertools
from collections import Counter

import numpy as np
import onnx
import pytest
from bert import Bert
from conftest import random_samples
from onnx import TensorProto, helper, numpy_helper
from pruned_models import pruned, sizes

from graphcompress.coupling.couplings import FFN, HEAD, couplings
from graphcompress.data.made_up import varied_samples
from graphcompress.data.samples import Samples
from graphcompress.errors import UsageError
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
    gone = [64 - left for left in sizes(tiny_bert, "ffn")]
    shared = f"16 FFN nodes ({min(gone)} to {max(gone)} of a layer) go where the outputs lose least: "
    assert any(note.startswith(shared) for note in record.notes)
    if 64 in sizes(tiny_bert, "ffn"):
        assert any("cost less; scope=layer cuts here, too" in item.reason for item in record.skipped)


def test_nobody_is_sent_to_a_scope_that_cuts_nothing(tiny_bert, tiny_samples):
    record = pruned(tiny_bert, tiny_samples, ffn=0.1)
    assert sum(sizes(tiny_bert, "ffn")) == 2 * 64 - 8
    assert "FFN nodes of other blocks cost less" in [item.reason for item in record.skipped]


def question_answerer(folder):
    """A model that gives a score to every position, [batch, length], and nothing else."""
    proto = Bert().model()
    proto.graph.node.append(
        helper.make_node("Gather", ["last_hidden_state", "first"], ["start_logits"], axis=2)
    )
    proto.graph.initializer.append(numpy_helper.from_array(np.array(0, np.int64), "first"))
    del proto.graph.output[:]
    shape = ["batch", "sequence"]
    proto.graph.output.append(helper.make_tensor_value_info("start_logits", TensorProto.FLOAT, shape))
    onnx.save(proto, folder / "model.onnx")
    return Model.load(folder / "model.onnx")


@pytest.mark.parametrize("options", [{"ffn": 0.25, "heads": 0.5}, {"keep": 0.9}], ids=["ratio", "goal"])
def test_scores_of_positions_say_what_is_lost(tmp_path, options):
    """Their last axis is as long as the sample: they have one mean."""
    model, samples = question_answerer(tmp_path), random_samples(24)
    record = pruned(model, samples, **options)
    assert record.touched
    assert any("squared error of the outputs" in note for note in record.notes)
    assert sum(sizes(model, "ffn")) < 2 * 64


def test_without_an_output_that_says_what_is_lost_every_layer_loses_the_ratio(tmp_path):
    proto = Bert().model()
    proto.graph.node.append(helper.make_node("ArgMax", ["last_hidden_state"], ["best"], axis=2))
    del proto.graph.output[:]
    proto.graph.output.append(
        helper.make_tensor_value_info("best", TensorProto.INT64, ["batch", "sequence", 1])
    )
    onnx.save(proto, tmp_path / "model.onnx")
    model = Model.load(tmp_path / "model.onnx")
    with pytest.raises(UsageError, match="no output of the model says what is lost; give ratios"):
        pruned(model.clone(), random_samples(24), keep=0.9)
    record = pruned(model, random_samples(24), ffn=0.25)
    assert sizes(model, "ffn") == [48, 48]
    assert any(note.startswith("no output says what is lost") for note in record.notes)


def test_padding_and_the_order_of_lengths_judge_nothing(tiny_bert):
    """As arrays of one length with masks, or as they are: the same rows say what a removal costs."""
    long = random_samples(24)
    widest = max(feed["input_ids"].size for feed in long.feeds)
    padded = Samples([{k: np.pad(a, (0, widest - a.size)) for k, a in feed.items()} for feed in long.feeds])
    losses = []
    for samples in (long, padded):
        planner = planner_of(tiny_bert, samples)
        block = planner.blocks[0]
        fit = planner.trial.fits[block]
        losses.append(planner.effect({block: type(fit)(np.zeros_like(fit.weight), fit.bias)}))
    assert losses[0] == pytest.approx(losses[1], rel=1e-4)
    lengths = [next(iter(feed.values())).shape[1] for feed in planner_of(tiny_bert, long).effect.trial.feeds]
    assert lengths != sorted(lengths)


def test_without_a_refit_a_reader_without_a_bias_gets_none(sequence_folders):
    model = Model.load(sequence_folders["llama"])
    Simplify().run(model, Context())
    before = Counter(node.op_type for node in model.graph)
    record = pruned(model, varied_samples(model, seed=0), ffn=0.25, refit=False)
    assert record.touched
    assert Counter(node.op_type for node in model.graph) == before


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
    assert loss.told(alone) == f"scores of tokens diverge by {alone:.3g} nats on held-out samples"


def test_as_many_samples_judge_as_it_takes(tiny_bert, tiny_samples, monkeypatch):
    every = planner_of(tiny_bert, tiny_samples).effect.trial.feeds
    monkeypatch.setattr(trial_model, "JUDGED_ROWS", 1)
    few = planner_of(tiny_bert, tiny_samples).effect.trial.feeds
    assert len(few) == 1 < len(every)
