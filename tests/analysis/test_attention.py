from __future__ import annotations

import math

import pytest
import texts

from graphcompress.analysis.attentions import attentions
from graphcompress.analysis.cost import node_costs


def test_attentions_of_bert(tiny_bert):
    found = attentions(tiny_bert)
    assert len(found) == 2
    first = found[0]
    module = "encoder.layer.0.attention"
    assert (first.num_heads, first.kv_heads, first.head_dim) == (4, 4, 8)
    assert first.scale == pytest.approx(1 / math.sqrt(8))
    assert first.scores.name == f"{module}.scores"
    assert first.probabilities.name == f"{module}.probabilities"
    assert first.output.name == f"{module}.context"
    assert [operand.origin.name for operand in first.operands] == [
        f"{module}.self.{part}" for part in ("query", "key", "value")
    ]
    assert [linear.name for linear in first.producers] == [
        f"{module}.self.{part}.weight_t" for part in ("query", "key", "value")
    ]
    assert [linear.name for linear in first.consumers] == [f"{module}.output.dense.weight_t"]


def test_packed_queries_keys_and_values():
    (found,) = attentions(texts.model_of(texts.PACKED))
    assert [operand.origin.name for operand in found.operands] == ["q", "k", "v"]
    assert [linear.name for linear in found.producers] == ["qkv"]
    assert (found.num_heads, found.kv_heads, found.scale) == (4, 4, 0.5)
    assert found.scores.name == "scores"


def test_sinks_are_part_of_the_chain():
    (found,) = attentions(texts.model_of(texts.SINKS))
    assert (found.num_heads, found.scale, found.scores.name) == (4, 0.5, "scores")
    assert [step.node.op_type for step in found.scoring] == ["Div", "Where", "Concat", "Sub"]
    assert [step.node.op_type for step in found.guard] == ["Slice"]


def test_two_kinds_of_keys_are_no_sinks():
    text = texts.SINKS.replace("axis = -1> (masked, sink)", "axis = -1> (masked, masked)")
    assert attentions(texts.model_of(text)) == []


def test_grouped_keys():
    (found,) = attentions(texts.model_of(texts.GROUPED))
    assert (found.num_heads, found.kv_heads, found.head_dim) == (4, 2, 8)
    assert [linear.name for linear in found.producers] == ["q_proj", "k_proj", "v_proj"]


def test_attention_operator():
    (found,) = attentions(texts.model_of(texts.OPERATOR, opset=23))
    assert (found.num_heads, found.kv_heads, found.head_dim) == (4, 2, 8)
    assert found.scale == pytest.approx(1 / math.sqrt(8))
    assert found.scores is None
    assert found.probabilities is None
    assert [linear.name for linear in found.consumers] == ["out"]


def test_scale_that_the_graph_computes_from_a_fixed_size():
    (found,) = attentions(texts.model_of(texts.MEASURED_SCALE))
    assert found.scale == pytest.approx(0.5)


@pytest.mark.parametrize(
    ("after_mask", "scale"),
    [("Mul(masked, root)", 1.0), ("Div(masked, root)", 0.25), ("Mul(masked, raw)", None)],
)
def test_scale_after_the_mask_counts(after_mask, scale):
    text = texts.PACKED.replace("Softmax <axis = -1> (masked)", "Softmax <axis = -1> (again)")
    text = text.replace("soft =", f"again = {after_mask}\n  soft =")
    (found,) = attentions(texts.model_of(text))
    assert found.scale == scale
    assert found.scores.name == "scores"


def test_softmax_that_is_no_attention():
    assert attentions(texts.model_of(texts.MLP.replace("Gelu(b)", "Softmax <axis = -1> (b)"))) == []


@pytest.mark.parametrize(("text", "opset"), [(texts.PACKED, 18), (texts.GROUPED, 18), (texts.OPERATOR, 23)])
def test_both_products_of_an_attention_count(text, opset):
    """Every query meets every key once for its score and once for its value, in every head."""
    model = texts.model_of(text, opset=opset)
    (found,) = attentions(model)
    costs = {cost.node: cost.macs for cost in node_costs(model, batch=2, length=6)}
    assert sum(costs[node] for node in found.products) == 2 * 2 * found.num_heads * found.head_dim * 6**2
