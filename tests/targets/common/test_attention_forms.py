"""Attention as one node: what is matched, and what is left alone."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import pytest
from operator_forms import applied, check_forms, model_of, ops, random

from graphcompress.graph.runner import Runner
from graphcompress.targets.common.attention import FusedAttention
from graphcompress.targets.common.form_choice import same_outputs

ATTENTION = """
g (float[b,s,8] q, float[b,s,8] k, float[b,s,8] v, float[b,1,{rows},s] mask) => (float[b,s,8] out) {{
  qr = Reshape(q, heads)  qt = Transpose <perm = [0, 2, 1, 3]> (qr)  qs = Mul(qt, scale)
  kr = Reshape(k, heads)  kt = Transpose <perm = [0, 2, {key}]> (kr)  ks = Mul(scale, kt)
  vr = Reshape(v, heads)  vt = Transpose <perm = [0, 2, 1, 3]> (vr)
  p = MatMul(qs, ks)  a = Add(p, mask)  soft = Softmax <axis = {axis}> (a)  {guard}
  c = MatMul(soft{guarded}, vt)  t = Transpose <perm = [0, 2, 1, 3]> (c)  out = Reshape(t, whole)
}}
"""


def attention_model(rows="1", key="3, 1", axis=-1, guard="", mask="b,1,{rows},s"):
    text = ATTENTION.replace("b,1,{rows},s", mask)
    text = text.format(rows=rows, key=key, axis=axis, guard=guard, guarded="ed" if guard else "")
    weights = {"heads": np.array([0, 0, 2, 4]), "whole": np.array([0, 0, 8]), "scale": np.float32(0.6)}
    return model_of(text, weights)


def attention_feed(rows=1):
    mask = np.zeros((2, 1, rows, 5), np.float32)
    mask[0, :, :, 3:] = -1e4
    return {name: random(2, 5, 8, seed=i) for i, name in enumerate("qkv")} | {"mask": mask}


BOTH = FusedAttention(operator=True)


@pytest.mark.parametrize("rows", [1, 5])
def test_attention_as_one_node(rows):
    model = attention_model(rows="1" if rows == 1 else "s")
    check_forms(model, BOTH, 1, **attention_feed(rows))
    for form in BOTH.forms:
        assert "Softmax" not in ops(applied(model, BOTH, form)), form


@pytest.mark.parametrize("mask", ["b,2,s,s", "1,1,s,s", "1,2,1,s", "b,1,1,s"])
def test_attention_with_masks_of_every_kind(mask):
    model = attention_model(mask=mask)
    sizes = [{"b": 3, "s": 5, "1": 1, "2": 2}[d] for d in mask.split(",")]
    values = np.where(random(*sizes, seed=7) > 0.5, -1e4, 0).astype(np.float32)
    feed = {name: random(3, 5, 8, seed=i) for i, name in enumerate("qkv")} | {"mask": values}
    check_forms(model, BOTH, 1, **feed)


def test_attention_over_another_sequence():
    text = ATTENTION.format(rows="1", key="3, 1", axis=-1, guard="", guarded="")
    text = (
        text.replace("[b,s,8] k", "[b,t,8] k")
        .replace("[b,s,8] v", "[b,t,8] v")
        .replace("1,s] mask", "1,t] mask")
    )
    weights = {"heads": np.array([0, 0, 2, 4]), "whole": np.array([0, 0, 8]), "scale": np.float32(0.6)}
    feed = {"q": random(2, 3, 8), "k": random(2, 7, 8, seed=1), "v": random(2, 7, 8, seed=2)}
    check_forms(model_of(text, weights), BOTH, 1, **feed, mask=np.zeros((2, 1, 1, 7), np.float32))


def test_attention_as_an_operator_raises_the_opset_and_only_then():
    assert set(FusedAttention().forms) == {"multi_head"}
    model = attention_model()
    assert applied(model, BOTH, "multi_head").opset == 20
    twin = applied(model, BOTH, "operator")
    assert (twin.opset, twin.ir.ir_version) == (23, 11)
    assert "Attention" in ops(twin)
    onnx.checker.check_model(ir.to_proto(twin.ir))


@pytest.mark.parametrize("form", list(BOTH.forms))
def test_attention_as_one_node_at_many_lengths(form):
    model = attention_model()
    twin = applied(model, BOTH, form)
    with Runner(model) as before, Runner(twin) as after:
        for length in (1, 2, 3, 31, 32, 33, 64):
            feed = {name: random(2, length, 8, seed=i) for i, name in enumerate("qkv")}
            feed["mask"] = np.where(random(2, 1, 1, length, seed=7) > 1, -1e4, 0).astype(np.float32)
            assert same_outputs([before(feed)], [after(feed)]), length


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("hidden", [np.finfo(np.float32).min, -1e30])
def test_a_query_that_sees_no_key_has_the_mean_of_the_values(rows, hidden):
    feed = attention_feed(rows)
    feed["mask"][1] = hidden
    feed["mask"][0, :, -1] = hidden
    check_forms(attention_model(rows="1" if rows == 1 else "s"), BOTH, 1, **feed)


@pytest.mark.parametrize("opset", [13, 14, 17])
def test_attention_of_an_older_opset(opset):
    text = ATTENTION.format(rows="1", key="3, 1", axis=-1, guard="", guarded="")
    weights = {"heads": np.array([0, 0, 2, 4]), "whole": np.array([0, 0, 8]), "scale": np.float32(0.6)}
    check_forms(model_of(text, weights, opset), BOTH, 1, **attention_feed())


@pytest.mark.parametrize("alone", ["q", "kv", "qkv"])
def test_a_batch_of_one_that_is_repeated_is_not_matched(alone):
    """The products repeat it: queries that are weights, one mask for every sample."""
    text = ATTENTION.format(rows="1", key="3, 1", axis=-1, guard="", guarded="")
    for name in alone:
        text = text.replace(f"float[b,s,8] {name},", f"float[1,s,8] {name},")
    weights = {"heads": np.array([0, 0, 2, 4]), "whole": np.array([0, 0, 8]), "scale": np.float32(0.6)}
    assert BOTH.sites(model_of(text, weights)) == []
    text = text.replace("[b,", "[1,")
    assert len(BOTH.sites(model_of(text, weights))) == 1


TWO_ATTENTIONS = """
g (float[b,s,8] q, float[b,r,8] p, float[b,t,8] k, float[b,1,1,t] mask)
  => (float[b,s,8] xo, float[b,r,8] yo) {{
  {0}  {1}
}}
"""


ONE_OF_TWO = """
  {n}qr = Reshape({q}, heads)  {n}qt = Transpose <perm = [0, 2, 1, 3]> ({n}qr)
  {n}kr = Reshape(k, heads)  {n}kt = Transpose <perm = [0, 2, 3, 1]> ({n}kr)
  {n}vr = Reshape(k, heads)  {n}vt = Transpose <perm = [0, 2, 1, 3]> ({n}vr)
  {n}p = MatMul({n}qt, {n}kt)  {n}a = Add({n}p, mask)  {n}soft = Softmax <axis = -1> ({n}a)
  {n}c = MatMul({n}soft, {n}vt)  {n}t = Transpose <perm = [0, 2, 1, 3]> ({n}c)
  {n}o = Reshape({n}t, whole)
"""


def test_attentions_of_two_lengths_share_a_mask_and_not_its_rows():
    text = TWO_ATTENTIONS.format(ONE_OF_TWO.format(n="x", q="q"), ONE_OF_TWO.format(n="y", q="p"))
    weights = {"heads": np.array([0, 0, 2, 4]), "whole": np.array([0, 0, 8])}
    model = model_of(text, weights)
    mask = np.where(random(2, 1, 1, 4, seed=7) > 0, -1e4, 0).astype(np.float32)
    feed = {"q": random(2, 3, 8), "p": random(2, 5, 8, seed=1), "k": random(2, 4, 8, seed=2), "mask": mask}
    check_forms(model, BOTH, 2, **feed)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(
    "added", ["b = Add(p, bias)  a = Add(b, mask)", "b = Add(mask, p)  a = Add(bias, b)"]
)
def test_multi_head_attention_with_a_bias_of_positions_and_a_mask(rows, added):
    text = ATTENTION.format(rows="1" if rows == 1 else "s", key="3, 1", axis=-1, guard="", guarded="")
    text = text.replace("a = Add(p, mask)", added).replace(" mask) =>", " mask, float[1,2,s,s] bias) =>")
    weights = {"heads": np.array([0, 0, 2, 4]), "whole": np.array([0, 0, 8]), "scale": np.float32(0.6)}
    model = model_of(text, weights)
    check_forms(model, FusedAttention(), 1, **attention_feed(rows), bias=random(1, 2, 5, 5, seed=9))
    assert "Softmax" not in ops(applied(model, FusedAttention(), "multi_head"))


def test_a_guard_after_the_softmax_or_another_axis_is_not_matched():
    guarded = "n = IsNaN(soft) zero = Sub(soft, soft) softed = Where(n, zero, soft)"
    assert FusedAttention().sites(attention_model(guard=guarded)) == []
    assert FusedAttention().sites(attention_model(axis=2)) == []
