"""Operators of newer opsets are written out for older ones."""

import numpy as np
import pytest
from operator_forms import model_of, ops, random, run

from graphcompress.plugin.context import Context
from graphcompress.rules.opsets.lowering import legalise
from graphcompress.targets.common.form_choice import same_outputs

OPERATOR = """
g (float[b,2,s,4] q, float[b,2,s,4] k, float[b,2,s,4] v, {kind}[b,1,s,s] mask) => (float[b,2,s,4] out) {{
  out = Attention <{attributes}> (q, k, v, mask)
}}
"""


def operator_model(kind="bool", attributes="scale = 0.3"):
    return model_of(OPERATOR.format(kind=kind, attributes=attributes), opset=23)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_attention_operator_is_written_out(kind):
    model = operator_model(kind)
    feed = {name: random(2, 2, 5, 4, seed=i) for i, name in enumerate("qkv")}
    mask = np.tril(np.ones((2, 1, 5, 5), bool))
    feed["mask"] = mask if kind == "bool" else np.where(mask, 0, -1e4).astype(np.float32)
    expected = run(model, **feed)
    assert legalise(model, Context()) is None
    assert "Attention" not in ops(model)
    assert model.opset == 21
    assert same_outputs([expected], [run(model, **feed)])


def test_attention_operator_over_three_dimensions():
    text = (
        "g (float[b,s,8] q, float[b,s,8] k, float[b,s,8] v) => (float[b,s,8] out) "
        "{ out = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v) }"
    )
    model = model_of(text, opset=23)
    feed = {name: random(2, 5, 8, seed=i) for i, name in enumerate("qkv")}
    expected = run(model, **feed)
    assert legalise(model, Context()) is None
    assert same_outputs([expected], [run(model, **feed)])


def test_what_needs_a_newer_opset_keeps_it_and_says_why():
    model = operator_model("float", "is_causal = 1")
    reason = legalise(model, Context())
    assert model.opset == 23
    assert "Attention" in ops(model)
    assert reason is not None
    assert reason.startswith("Attention")


def test_older_opsets_stay():
    model = model_of("g (float[b,8] x) => (float[b,8] y) { y = Relu(x) }", opset=17)
    assert legalise(model, Context()) is None
    assert model.opset == 17
