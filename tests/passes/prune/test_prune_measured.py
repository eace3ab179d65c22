"""Heads that a mean, a norm or a product runs over: removing one is not zeroing it."""

from __future__ import annotations

import numpy as np
import pytest
import texts
from cutting import narrowed
from pruned_models import edit, pruned, sizes, stored

from graphcompress.coupling.couplings import FFN, HEAD, couplings
from graphcompress.coupling.ends import shown
from graphcompress.data.held_out import split
from graphcompress.data.made_up import varied_samples
from graphcompress.graph.runner import Runner

MAPS = texts.PACKED.replace(" y)\n", " y, float[batch, sequence, sequence] maps)\n").replace(
    "context =", "maps = ReduceMean <keepdims = 0> (soft, one)\n  context ="
)
MAPS = MAPS.replace("int64[4] heads", "int64[1] one = {1}, int64[4] heads")
NORM = texts.PACKED.replace("MatMul(c, out)", "MatMul(n, out)").replace(
    "\n  o = ", "\n  n = LayerNormalization(c, gain)\n  o = "
)
NORM = NORM.replace("float[16, 16] out", "float[16, 16] out, float[16] gain")
QUERIES = texts.PACKED.replace(
    "q4 = Reshape(q, heads)",
    """square = Mul(q, q)
  mean = ReduceMean <keepdims = 1> (square, last)
  size = Sqrt(mean)
  unit = Div(q, size)
  q4 = Reshape(unit, heads)""",
).replace("int64[4] heads", "int64[1] last = {-1}, int64[4] heads")
RMS = texts.PACKED.replace("MatMul(c, out)", "MatMul(n, out)").replace(
    "\n  o = ",
    """
  square = Mul(c, c)
  mean = ReduceMean <keepdims = 1> (square, last)
  size = Sqrt(mean)
  n = Div(c, size)
  o = """,
)
RMS = RMS.replace("int64[4] heads", "int64[1] last = {-1}, int64[4] heads")
AVERAGE = texts.PACKED.replace(" y)\n", " y, float[batch, sequence] average)\n").replace(
    "\n  o = ", "\n  average = ReduceMean <keepdims = 0> (c, last)\n  o = "
)
AVERAGE = AVERAGE.replace("int64[4] heads", "int64[1] last = {-1}, int64[4] heads")
FORMS = {"maps": MAPS, "norm": NORM, "queries": QUERIES, "RMS norm": RMS, "average": AVERAGE}
SHOWN = {
    "all maps are shown": texts.PACKED.replace(" y)\n", " y, float[batch, 4, sequence, sequence] soft)\n"),
    "what the heads give is shown": texts.PACKED.replace(" y)\n", " y, float[batch, sequence, 16] c)\n"),
}
PLANS = {
    "a ratio": {"heads": 0.25},
    "a ratio of every layer": {"heads": 0.25, "scope": "layer"},
    "a ratio by magnitude": {"heads": 0.25, "importance": "magnitude"},
    "a ratio by activation": {"heads": 0.25, "importance": "activation"},
    "a ratio without a refit": {"heads": 0.25, "refit": False},
    "an error": {"max_error": 0.6},
    "a goal": {"keep": 0.8},
}


def model(text):
    """The model of a text; its second head says little to the linear that reads it."""
    made = texts.model_of(text, seed=3)
    array = stored(made, "out")
    array[4:8] *= 1e-3
    edit(made, "out", array)
    return made


def errors(before, after, samples):
    """Name of an output → error over its spread about the mean of each feature."""
    found = {}
    with Runner(before) as one, Runner(after) as other:
        for feed in samples.batches(8, by_length=True):
            answers = other(feed)
            for name, array in one(feed).items():
                found.setdefault(name, []).append((array, answers[name]))
    return {name: error(pairs) for name, pairs in found.items()}


def error(pairs):
    """Error over the spread; only a last axis of one size has features, with a mean each."""
    widths = {expected.shape[-1] for expected, _ in pairs}
    width = widths.pop() if len(widths) == 1 and pairs[0][0].ndim == 3 else 1
    expected, actual = (
        np.concatenate([np.asarray(array, np.float64).reshape(-1, width) for array in arrays])
        for arrays in zip(*pairs, strict=True)
    )
    return np.sqrt(np.sum((expected - actual) ** 2) / np.sum((expected - expected.mean(axis=0)) ** 2))


@pytest.mark.parametrize(
    ("text", "kind", "expected"),
    [
        (MAPS, HEAD, ["maps"]),
        (NORM, HEAD, []),
        (QUERIES, HEAD, []),
        (texts.GRAM, FFN, ["gram"]),
        (texts.PACKED, HEAD, []),
        (texts.MLP, FFN, []),
    ],
)
def test_what_is_made_of_all_units(text, kind, expected):
    (group,) = (group for group in couplings(texts.model_of(text, opset=20)) if group.kind == kind)
    assert [value.name for value in shown(group)] == expected


@pytest.mark.parametrize("form", FORMS)
def test_without_samples_none_is_dead(form):
    made = model(FORMS[form])
    record = pruned(made)
    assert sizes(made, HEAD) == [4]
    assert "samples tell what removing some costs" in record.skipped[0].reason


def test_a_node_that_a_product_reads_is_not_dead():
    made = texts.model_of(texts.GRAM)
    array = stored(made, "down")
    array[:8] = 0
    edit(made, "down", array)
    pruned(made)
    assert sizes(made, FFN) == [24]
    record = pruned(made, varied_samples(made, seed=1), ffn=0.5)
    assert sizes(made, FFN) == [24]
    assert next(item for item in record.skipped if item.figures).figures["error"] > 0.05


def test_a_mean_that_is_shown_keeps_all_heads():
    made = model(MAPS)
    samples = varied_samples(made, seed=1)
    record = pruned(made, samples, heads=0.25)
    assert sizes(made, HEAD) == [4]
    left = next(item for item in record.skipped if item.figures)
    assert "is used elsewhere" in left.reason
    _, held_out = split(samples)
    (group,) = (group for group in couplings(made) if group.kind == HEAD)
    alone = [errors(made, narrowed(made, {group.name: np.arange(4) != head}), held_out) for head in range(4)]
    assert left.figures["error"] in [pytest.approx(one["maps"], rel=1e-3) for one in alone]
    pruned(made, samples, max_error=left.figures["needs_max_error"])
    assert sizes(made, HEAD) == [3]


@pytest.mark.parametrize("form", SHOWN)
@pytest.mark.parametrize("plan", PLANS)
def test_heads_that_are_shown_one_by_one_stay_in_every_plan(form, plan):
    made = model(SHOWN[form])
    record = pruned(made, varied_samples(made, seed=1), **PLANS[plan])
    assert sizes(made, HEAD) == []
    assert [item.reason for item in record.touched] == []
    if "keep" not in PLANS[plan]:
        assert "the axis of its heads is fixed: it is an output of the graph" in record.skipped[0].reason
    assert made.parameters == model(SHOWN[form]).parameters


@pytest.mark.parametrize("form", FORMS)
@pytest.mark.parametrize("plan", PLANS)
def test_every_plan_counts_what_a_cut_costs(form, plan):
    """A head may go where something runs over all of them; its error is that of the outputs, to the digit."""
    made = model(FORMS[form].replace("] y", "] y, float[batch, sequence, 16] o", 1))
    samples = varied_samples(made, seed=1)
    twin = made.clone()
    record = pruned(twin, samples, **PLANS[plan])
    found = errors(made, twin, split(samples)[1])
    del found["y"]  # the residual stream beside them is in it, too
    told = [item.figures["error"] for item in record.touched]
    assert told == [pytest.approx(max(found.values()), rel=1e-4)] * len(told)
    assert bool(told) == (sizes(twin, HEAD) != [4])
    assert max(found.values()) <= 0.6
    assert told or record.skipped[0].reason


@pytest.mark.parametrize("form", ["norm", "queries", "RMS norm"])
def test_the_head_goes_whose_loss_changes_least(form):
    made = model(FORMS[form])
    samples = varied_samples(made, seed=1)
    (group,) = (group for group in couplings(made) if group.kind == HEAD)
    _, held_out = split(samples)
    alone = [errors(made, narrowed(made, {group.name: np.arange(4) != head}), held_out) for head in range(4)]
    twin = made.clone()
    record = pruned(twin, samples, heads=0.25)
    assert sizes(twin, HEAD) == [3]
    assert 0 < record.touched[0].figures["error"] < 1
    assert errors(made, twin, held_out)["y"] == pytest.approx(min(one["y"] for one in alone), rel=1e-4)


@pytest.mark.parametrize("form", FORMS)
def test_no_more_go_than_max_error_allows(form):
    made = model(FORMS[form])
    samples = varied_samples(made, seed=1)
    twin = made.clone()
    record = pruned(twin, samples, max_error=0.001)
    assert sizes(twin, HEAD) == [4]
    if form == "average":
        assert "needs_max_error" not in record.skipped[0].figures
        assert "costs more than max_error, whatever it is: 1.1 of the spread" in record.skipped[0].reason
        return
    needed = record.skipped[0].figures["needs_max_error"]
    assert pruned(twin, samples, max_error=needed).touched[0].figures["error"] <= needed
    assert sizes(twin, HEAD) == [3]
