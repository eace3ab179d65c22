"""prune: what is left is fitted again, within the error that is allowed."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from pruned_models import FFN_IN, FFN_OUT, distance, edit, outputs, pruned, sizes, stored, weight

from graphcompress.analysis.linears import bias_of, linears
from graphcompress.coupling.couplings import couplings
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.numerics.least_squares import RIDGES
from graphcompress.passes.prune.blocks import Witness, blocks_of
from graphcompress.passes.prune.told import NO_UNITS
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter


@pytest.mark.parametrize("importance", ["magnitude", "activation", "obs"])
def test_measured_importance_loses_less_than_its_reverse(tiny_bert_path, tiny_samples, importance):
    model = Model.load(tiny_bert_path)
    before = outputs(model, tiny_samples)
    pruned(model, tiny_samples, ffn=0.5, importance=importance, refit=False)
    kept = model.kept[weight(model, FFN_OUT.format(0)).weight.name][0]
    chosen = distance(before, outputs(model, tiny_samples))
    reverse = Model.load(tiny_bert_path)
    for layer in range(2):
        name = FFN_OUT.format(layer) + ".weight_t"
        rows = stored(reverse, name)
        rows[model.kept[name][0]] = 0.0
        edit(reverse, name, rows)
    assert len(kept) == 32
    assert chosen < 0.8 * distance(before, outputs(reverse, tiny_samples))


def block_error(model, reference, samples, layer):
    """Error of one reader's output against the original's, on the samples."""
    name = FFN_OUT.format(layer)
    values = [next(li.output for li in linears(m) if li.name.startswith(name)) for m in (reference, model)]
    total = 0.0
    with Runner(reference, values[:1]) as original, Runner(model, values[1:]) as now:
        for feed in samples.batches(1):
            (a,), (b,) = original(feed).values(), now(feed).values()
            total += float(np.sum((a - b) ** 2))
    return total


@pytest.mark.parametrize("ratio", [0.25, 0.75])
def test_a_refit_never_loses_more_on_the_calibration_samples(tiny_bert_path, tiny_samples, ratio):
    errors = {}
    for refit in (True, False):
        model = Model.load(tiny_bert_path)
        pruned(model, tiny_samples, ffn=ratio, refit=refit, only="encoder.layer.0.*", importance="obs")
        errors[refit] = block_error(model, Model.load(tiny_bert_path), tiny_samples, 0)
    assert 0 < errors[True] < 0.7 * errors[False]


def test_the_refit_is_the_least_squares_optimum_of_the_explicit_matrices(
    tiny_bert, tiny_path_twin, tiny_samples
):
    with Rewriter(tiny_path_twin, Context()) as rw:
        block = next(b for b in blocks_of(rw, couplings(tiny_path_twin), "*") if b.group.kind == "ffn")
    ((_, evidence),) = Witness(tiny_path_twin, tiny_samples, Context().progress).stream([block])
    rows = []
    with Runner(tiny_path_twin, [block.reader.input]) as runner:
        for feed in tiny_samples.batches(1):
            rows.append(next(iter(runner(feed).values()))[0])
    x = np.concatenate(rows).astype(np.float64)
    assert evidence.all.count == len(x)
    np.testing.assert_allclose(evidence.all.mean, x.mean(0), rtol=1e-4, atol=1e-5)
    pruned(tiny_bert, tiny_samples, ffn=0.5, only="encoder.layer.0.*")
    now = weight(tiny_bert, FFN_OUT.format(0))
    kept = tiny_bert.kept[now.weight.name][0]
    target = x @ block.reader.dense() + bias_of(block.reader)
    spread = np.mean(x[:, kept].var(0))
    candidates = []
    for strength in RIDGES[:-1]:
        pull = np.sqrt(strength * spread * len(x)) * np.eye(len(kept))
        centred = x[:, kept] - x[:, kept].mean(0)
        right = np.r_[target - target.mean(0), pull @ block.reader.dense()[kept]]
        candidates.append(np.linalg.lstsq(np.r_[centred, pull], right, rcond=None)[0])
    assert min(np.abs(now.dense() - candidate).max() for candidate in candidates) < 1e-4
    bias = target.mean(0) - x[:, kept].mean(0) @ now.dense()
    np.testing.assert_allclose(now.bias.const_value.numpy(), bias, atol=1e-4)


def test_without_samples_a_ratio_goes_by_magnitude_and_leaves_weights_as_they_are(tiny_bert, tiny_path_twin):
    record = pruned(tiny_bert, ffn=0.5)
    now, before = weight(tiny_bert, FFN_OUT.format(0)), weight(tiny_path_twin, FFN_OUT.format(0))
    columns = weight(tiny_path_twin, FFN_IN.format(0)).dense()
    scores = np.linalg.norm(columns, axis=0) * np.linalg.norm(before.dense(), axis=1)
    np.testing.assert_array_equal(tiny_bert.kept[now.weight.name][0], np.sort(np.argsort(scores)[32:]))
    np.testing.assert_array_equal(now.dense(), before.dense()[np.sort(np.argsort(scores)[32:])])
    assert any("by magnitude" in note for note in record.notes)


def test_without_a_ratio_every_block_stays_within_max_error(tiny_bert, tiny_samples):
    record = pruned(tiny_bert, tiny_samples, max_error=0.4)
    assert record.touched
    assert all(item.figures["error"] <= 0.45 for item in record.touched)
    assert any("would leave block errors" in note for note in record.notes)


def test_a_looser_limit_removes_more(tiny_bert_path, tiny_samples):
    left = []
    for limit in (0.1, 0.4, 0.8):
        model = Model.load(tiny_bert_path)
        pruned(model, tiny_samples, max_error=limit)
        left.append(model.parameters)
    assert left[0] > left[1] > left[2]


def test_without_options_and_samples_a_model_without_dead_units_is_left_alone(tiny_bert):
    before = tiny_bert.parameters
    record = pruned(tiny_bert)
    assert tiny_bert.parameters == before
    assert not record.touched
    told = [item for item in record.skipped if item.reason != NO_UNITS]
    assert len(told) == 12
    assert all("without samples" in item.reason for item in told)


def test_a_second_run_without_options_leaves_it_alone(tiny_bert, tiny_samples):
    pruned(tiny_bert, tiny_samples, max_error=0.5)
    before = tiny_bert.parameters, outputs(tiny_bert, tiny_samples)
    record = pruned(tiny_bert, tiny_samples, max_error=0.5)
    assert tiny_bert.parameters == before[0]
    assert distance(before[1], outputs(tiny_bert, tiny_samples)) == 0.0
    assert any("pruned already" in item.reason for item in record.skipped)


def test_a_second_run_with_a_ratio_takes_that_share_of_what_is_left(tiny_bert, tiny_samples):
    for expected in (32, 16):
        pruned(tiny_bert, tiny_samples, ffn=0.5, scope="layer")
        assert sizes(tiny_bert, "ffn") == [expected, expected]


@pytest.mark.parametrize("refit", [True, False])
def test_a_ranking_or_refit_of_few_tokens_is_told_with_the_count_that_would_do(
    tiny_bert, tiny_samples, refit
):
    made = tiny_bert.clone()
    few = replace(tiny_samples, feeds=tiny_samples.feeds[:3])
    record = pruned(tiny_bert, few, ffn=0.5, importance="obs", refit=refit)
    what = "the refit" if refit else "the ranking by obs"
    told = next(note for note in record.notes if note.startswith("too little data"))
    features = weight(made, FFN_OUT.format(0)).in_features
    assert told.startswith(f"too little data: {what} of {features} features saw ")
    assert told.endswith(f"tokens; {2 * features} would do")
