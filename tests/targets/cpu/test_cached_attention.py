"""Attention over a cache as one node: what is matched, what stays, and queries that may look at nothing."""

import numpy as np
import pytest
from operator_forms import applied, check_forms, model_of, ops, random

from graphcompress.errors import DataError
from graphcompress.plugin.context import Context
from graphcompress.targets.common.attention import OPERATOR
from graphcompress.targets.common.form_choice import take_forms
from graphcompress.targets.cpu.cached_attention import CachedAttention

FAMILY = CachedAttention()

SPLIT = """
g (float[b,s,8] q, float[b,s,8] k, float[b,s,8] v,
   float[b,2,p,4] past_k, float[b,2,p,4] past_v, bool[b,1,s,t] seen)
  => (float[b,s,8] out, float[b,2,t,4] keys, float[b,2,t,4] values) {{
  qr = Reshape(q, heads)  qt = Transpose <perm = [0, 2, 1, 3]> (qr)  qs = Mul(qt, scale)
  kr = Reshape(k, heads)  kt = Transpose <perm = [0, 2, 1, 3]> (kr)
  vr = Reshape(v, heads)  vt = Transpose <perm = [0, 2, 1, 3]> (vr)
  keys = Concat <axis = {axis}> (past_k, kt)  values = Concat <axis = -2> (past_v, vt)
  turned = Transpose <perm = [0, 1, 3, 2]> (keys)
  p = MatMul(qs, turned)  mask = Where(seen, zero, hidden)  a = Add(p, mask)  soft = Softmax <axis = -1> (a)
  {guard}  c = MatMul({probabilities}, values)
  t = Transpose <perm = [0, 2, 1, 3]> (c)  out = Reshape(t, whole)
}}
"""
GUARD = {"guard": "nan = IsNaN(soft)  kept = Where(nan, zero, soft)", "probabilities": "kept"}
NONE = {"guard": "", "probabilities": "soft"}

HEADS = """
g (float[b,4,s,4] q, float[b,2,t,4] k, float[b,2,t,4] v, float[b,1,{rows},t] mask) => (float[b,4,s,4] out) {{
  ku = Unsqueeze(k, two)  ke = Expand(ku, times)  kk = Reshape(ke, merged)
  vu = Unsqueeze(v, two)  ve = Expand(vu, times)  vv = Reshape(ve, merged)
  qs = Mul(q, scale)  turned = Transpose <perm = [0, 1, 3, 2]> (kk)  ts = Mul(turned, scale)
  p = MatMul(qs, ts)  a = Add(p, mask)  soft = Softmax <axis = -1> (a)  out = MatMul(soft, vv)
}}
"""


def split_model(hidden=-np.inf, axis=2, **guard):
    weights = {
        "heads": np.array([0, 0, 2, 4]),
        "whole": np.array([0, 0, 8]),
        "scale": np.float32(0.6),
        "zero": np.float32(0),
        "hidden": np.float32(hidden),
    }
    return model_of(SPLIT.format(axis=axis, **(guard or GUARD)), weights)


def split_feed(tokens=3, past=4, blind=True):
    """A feed; with ``blind`` the first query of the first row may look at nothing."""
    feed = {name: random(2, tokens, 8, seed=i) for i, name in enumerate("qkv")}
    feed |= {f"past_{name}": random(2, 2, past, 4, seed=7 + i) for i, name in enumerate("kv")}
    seen = np.tril(np.ones((tokens, past + tokens), bool), past)[None, None].repeat(2, 0)
    seen[0, 0, 0] &= not blind
    return feed | {"seen": seen}


@pytest.mark.parametrize("past", [0, 4])
@pytest.mark.parametrize("tokens", [1, 3])
def test_a_cache_and_the_split_of_heads_go_into_the_operator(tokens, past):
    model = split_model()
    check_forms(model, FAMILY, 1, **split_feed(tokens, past))
    assert ops(applied(model, FAMILY, OPERATOR)) == ["Where", "Attention"]


def test_the_lowest_number_is_not_infinite():
    check_forms(split_model(hidden=np.finfo(np.float32).min), FAMILY, 1, **split_feed())


def test_without_a_guard_a_cache_is_one_all_the_same():
    check_forms(split_model(**NONE), FAMILY, 1, **split_feed(blind=False))


def test_a_record_from_before_leaves_a_cache_alone_and_another_is_refused():
    model = split_model()
    before = ops(model)
    take_forms(model, [FAMILY], {}, Context())
    assert ops(model) == before
    with pytest.raises(DataError, match="the recipe has no form for"):
        take_forms(model, [FAMILY], {(FAMILY.name, "another"): OPERATOR}, Context())


@pytest.mark.parametrize("rows", ["1", "s"])
def test_heads_that_are_shared_are_not_repeated(rows):
    weights = {"two": np.array([2]), "times": np.array([1, 1, 2, 1, 1]), "merged": np.array([0, 4, -1, 4])}
    model = model_of(HEADS.format(rows=rows), weights | {"scale": np.float32(0.7)})
    mask = np.where(random(2, 1, 1 if rows == "1" else 3, 5, seed=5) > 0.5, -1e4, 0).astype(np.float32)
    feed = {"q": random(2, 4, 3, 4), "k": random(2, 2, 5, 4, seed=1), "v": random(2, 2, 5, 4, seed=2)}
    check_forms(model, FAMILY, 1, **feed, mask=mask)
    assert "Expand" not in ops(applied(model, FAMILY, OPERATOR)) or rows == "1"  # one for rows of the mask


@pytest.mark.parametrize(
    "left",
    [
        split_model(guard="nan = IsNaN(soft)  kept = Where(nan, scale, soft)", probabilities="kept"),
        split_model(guard="low = Less(soft, scale)  kept = Where(low, zero, soft)", probabilities="kept"),
        split_model(guard="kept = Mul(soft, scale)", probabilities="kept"),
    ],
)
def test_another_guard_is_left_alone(left):
    assert FAMILY.sites(left) == []
