"""An attention or FFN that is masked whole: when its bias may stand for it, and what stays otherwise."""

from __future__ import annotations

import numpy as np
import pytest
import texts

pytest.importorskip("torch")

from masked_models import PRESETS

from graphcompress.analysis.linears import linears
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.instruments.score_masks.amounts import Amounts
from graphcompress.instruments.score_masks.layout import layout
from graphcompress.instruments.score_masks.selection import Mask, Scores
from graphcompress.passes.blockprune.compact import compact
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter

FFN = """
g (float[batch, sequence, 16] x) => (float[batch, sequence, 16] y)
<float[16, 24] up, float[24] up_bias, float[24, 16] down, float[16] bias, float[16] gain>
{
  a = MatMul(x, up)
  b = Add(a, up_bias)
  c = Sigmoid(b)
  d = MatMul(c, down)
  e = Add(d, bias)
  TAIL
}
"""
PARALLEL = """
g (float[batch, sequence, 16] x) => (float[batch, sequence, 16] y, float[batch, sequence, 16] both)
<float[16, 24] up, float[24, 16] down, float[16] bias, float[16, 24] other_up, float[24, 16] other_down>
{
  a = MatMul(x, up)
  b = Relu(a)
  c = MatMul(b, down)
  d = Add(c, bias)
  e = MatMul(x, other_up)
  f = Relu(e)
  h = MatMul(f, other_down)
  both = Add(d, h)
  y = Add(x, both)
}
"""
TAILS = {
    "y = Add(x, e)": 0,
    "t = Dropout(e)\n y = Add(x, e)": 0,
    "n = LayerNormalization <axis = -1> (e, gain)\n y = Add(x, n)": 1,
    "t = Tanh(e)\n m = Mul(e, t)\n n = LayerNormalization <axis = 2> (m, gain)\n y = Add(x, n)": 1,
}
"""What reads an FFN → how many of its nodes stay."""


def compacted(model: Model, *zeros: str) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """What ``model`` answers with the weights ``zeros`` as zeros, and then without what they silence."""
    for number, node in enumerate(model.graph):
        node.name = f"node_{number}"
    feed = {"x": np.random.default_rng(0).standard_normal((2, 5, 16)).astype(np.float32)}
    with Rewriter(model, Context()) as rw:
        for name in zeros:
            value = model.graph.initializers[name]
            rw.overwrite(value, np.zeros_like(value.const_value.numpy()))
    with Runner(model) as runner:
        before = runner(feed)
    with Rewriter(model, Context()) as rw:
        compact(rw)
        rw.clean()
    with Runner(model) as runner:
        return before, runner(feed)


@pytest.mark.parametrize("silenced", ["up", "down"])
@pytest.mark.parametrize("tail", TAILS)
def test_one_node_stays_where_more_than_a_residual_sum_reads_them(tail: str, silenced: str) -> None:
    model = texts.model_of(FFN.replace("TAIL", tail))
    before, after = compacted(model, silenced)
    assert [each.in_features for each in linears(model, "down")] == [1] * TAILS[tail]
    np.testing.assert_allclose(after["y"], before["y"], rtol=1e-5, atol=1e-6)


def test_of_two_whose_sum_is_shown_one_keeps_a_node() -> None:
    model = texts.model_of(PARALLEL)
    before, after = compacted(model, "down", "other_down")
    assert [each.in_features for each in linears(model, "*down")] == [1]
    for name, expected in before.items():
        np.testing.assert_allclose(after[name], expected, rtol=1e-5, atol=1e-6)


def test_constant_nodes_of_two_that_share_a_bias_and_have_none_behind() -> None:
    model = texts.model_of(texts.SHARED_BIAS)
    before, after = compacted(model, "up0", "up1")
    assert not list(linears(model, "down*"))
    np.testing.assert_allclose(after["y"], before["y"], rtol=1e-5, atol=1e-6)


def test_an_expand_stays_whose_value_is_multiplied_with_what_it_makes() -> None:
    model = texts.model_of(
        """
        g (float[1, sequence, 16] x, float[batch, sequence, 16] z) => (float[batch, sequence, 16] y)
        {
          s = Shape(z)
          e = Expand(x, s)
          t = Tanh(e)
          y = Mul(e, t)
        }
        """
    )
    Simplify().run(model, Context())
    with Runner(model) as runner:
        found = runner({"x": np.ones((1, 5, 16), np.float32), "z": np.ones((3, 5, 16), np.float32)})
    assert found["y"].shape == (3, 5, 16)


@pytest.mark.parametrize("name", ["gpt2", "t5"])
def test_a_head_stays_for_a_cache_and_is_counted(name: str, sequence_folders: dict[str, str]) -> None:
    model = Model.load(sequence_folders[name])
    Simplify().run(model, Context())
    given = PRESETS["struct"]
    found = layout(model, given.grains, "*")
    scores = [Scores(each, given.selection, given.first) for each in found.scored]
    amounts = Amounts(found, [Mask(site, scores) for site in found.sites])
    told = amounts.compact_density([np.zeros(each.values.shape, bool) for each in scores])
    names = {site.weight.name for site in found.sites}
    with Rewriter(model, Context()) as rw:
        for site in found.sites:
            rw.overwrite(site.weight, np.zeros_like(site.weight.const_value.numpy()))
        compact(rw)
        rw.clean()
    left = {each.weight.name: each.dense().size for each in linears(model) if each.weight.name in names}
    assert sum(left.values()) == pytest.approx(told * amounts.total)
    assert told > 0
