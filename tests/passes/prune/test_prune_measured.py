"""Heads that a mean, a norm or a product runs over: removing one is not zeroing it."""

from __future__ import annotations

import numpy as np
import pytest
import texts
from cutting import narrowed
from pruned_models import edit, pruned, sizes, stored

from graphcompress.coupling.couplings import FFN, HEAD, couplings
from graphcompress.coupling.ends import shown
from graphcompress.data.made_up import varied_samples
from graphcompress.graph.runner import Runner
from graphcompress.passes.prune.blocks import split

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
FORMS = {"maps": MAPS, "norm": NORM, "queries": QUERIES}


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
            for name, array in one(feed).items():
                difference = np.sum((array - other(feed)[name]) ** 2)
                spread = np.sum((array - array.mean(axis=(0, 1))) ** 2)
                found.setdefault(name, []).append((difference, spread))
    return {
        name: np.sqrt(np.sum(pairs, axis=0)[0] / np.sum(pairs, axis=0)[1]) for name, pairs in found.items()
    }


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


@pytest.mark.parametrize("form", ["norm", "queries"])
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
    needed = record.skipped[0].figures["needs_max_error"]
    assert pruned(twin, samples, max_error=needed).touched[0].figures["error"] <= needed
    assert sizes(twin, HEAD) == [3]
