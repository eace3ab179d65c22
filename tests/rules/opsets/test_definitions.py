import numpy as np
import pytest
import texts

from graphcompress.graph.runner import Runner
from graphcompress.numerics.metrics import sqnr_db
from graphcompress.plugin.context import Context
from graphcompress.plugin.targeting import parse_target
from graphcompress.rules.opsets.definitions import spell_out
from graphcompress.rules.opsets.lowering import legalise
from graphcompress.targets.nvidia.engines.builder import RTX, is_installed

GRAPH = """
g (float[batch, length, 32] x) => (float[batch, length, 32] y)
<float[32, 32] w, float[32, 16] u, float[32] s>
{{ q = MatMul(x, w)
  k = MatMul(x, u)
  {body} }}
"""
NEWER = [
    (23, "y = RMSNormalization <axis = -1> (q, s)"),
    (24, "y = Swish(q)"),
    (24, "y = Swish <alpha = 0.7> (q)"),
    (23, "y = Attention <q_num_heads = 4, kv_num_heads = 4> (q, q, q)"),
    (23, "y = Attention <q_num_heads = 4, kv_num_heads = 2, is_causal = 1> (q, k, k)"),
]


def model_of(opset, body):
    return texts.model_of(GRAPH.format(body=body), opset=opset)


@pytest.mark.parametrize(("opset", "body"), NEWER)
def test_newer_operators_become_what_they_are_defined_to_be(opset, body):
    model = model_of(opset, body)
    twin = model.clone()
    assert len(spell_out(twin, Context(), 20)) == 1
    assert legalise(twin, Context(), 20) is None
    assert twin.opset == 20
    feed = {"x": np.random.default_rng(0).standard_normal((2, 7, 32)).astype(np.float32)}
    with Runner(model) as before, Runner(twin) as after:
        assert sqnr_db(before(feed)["y"], after(feed)["y"]) > 100


def test_what_an_older_opset_has_stays_as_it_is():
    model = model_of(23, "y = Gelu(q)")
    before = [node.op_type for node in model.graph]
    assert spell_out(model, Context(), 20) == []
    assert [node.op_type for node in model.graph] == before


def test_a_name_that_meant_something_else_is_newer_too():
    text = """
    g (float[batch, 8, 16] x) => (float[batch, 8, 16] y) <float[16, 16] w, float[8] s, float[8] b>
    { h = MatMul(x, w) y = GroupNormalization <num_groups = 2> (h, s, b) }
    """
    model = texts.model_of(text, opset=21)
    twin = model.clone()
    assert "GroupNormalization" in legalise(twin, Context(), 20)
    assert len(spell_out(twin, Context(), 20)) == 1
    assert legalise(twin, Context(), 20) is None
    feed = {"x": np.random.default_rng(0).standard_normal((2, 8, 16)).astype(np.float32)}
    with Runner(model) as before, Runner(twin) as after:
        assert sqnr_db(before(feed)["y"], after(feed)["y"]) > 100


@pytest.mark.parametrize(("opset", "body"), NEWER)
def test_the_graph_for_tensorrt_is_of_an_opset_that_its_versions_read(tmp_path, opset, body):
    build = "compute=86 build=require opt=1x8 largest=2x8" if is_installed(RTX) else "build=never"
    record = parse_target(f"tensorrt{{{build}}}").lower(model_of(opset, body), tmp_path, Context()).record
    assert record["opset"] == 20
    assert len(record["spelt_out_for_the_opset"]) == 1


def test_an_operator_without_a_definition_keeps_its_opset_and_that_is_said(tmp_path):
    text = "g (float[batch, 4, 8] x, float[batch, 1, 8] new, int64[batch] at) => (float[batch, 4, 8] y)"
    body = " <float[8, 8] w> { h = MatMul(x, w) y = TensorScatter <axis = 1> (h, new, at) }"
    model = texts.model_of(text + body, opset=24)
    record = parse_target("tensorrt{build=never}").lower(model, tmp_path, Context()).record
    assert record["opset"] == 24
    assert "stays in opset 24" in record["notes"][0]
    assert "TensorScatter" in record["notes"][0]
