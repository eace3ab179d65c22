from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
import texts
from bert import Bert

from graphcompress.coupling.couplings import FFN, HEAD, couplings
from graphcompress.coupling.layers import layers
from graphcompress.graph.model import Model
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context

PRE_NORM = """
g (float[batch, sequence, 16] x) => (float[batch, sequence, 16] y)
<float[16] gain, float[16] shift, {weights}
 int64[4] heads = {{0, 0, 4, 4}}, int64[3] joined = {{0, 0, 16}}, int64[1] first = {{0}}>
{{
  {body}
  y = LayerNormalization({last}, gain, shift)
}}
"""

ATTENTION = """
  n{i} = LayerNormalization({x}, gain, shift)
  q{i} = MatMul(n{i}, wq{i})
  k{i} = MatMul(n{i}, wk{i})
  v{i} = MatMul(n{i}, wv{i})
  q4{i} = Reshape(q{i}, heads)
  k4{i} = Reshape(k{i}, heads)
  v4{i} = Reshape(v{i}, heads)
  qt{i} = Transpose <perm = [0, 2, 1, 3]> (q4{i})
  kt{i} = Transpose <perm = [0, 2, 3, 1]> (k4{i})
  vt{i} = Transpose <perm = [0, 2, 1, 3]> (v4{i})
  s{i} = MatMul(qt{i}, kt{i})
  p{i} = Softmax <axis = -1> (s{i})
  c{i} = MatMul(p{i}, vt{i})
  ct{i} = Transpose <perm = [0, 2, 1, 3]> (c{i})
  cj{i} = Reshape(ct{i}, joined)
  o{i} = MatMul(cj{i}, wo{i})
"""
SERIAL = (
    ATTENTION
    + """
  a{i} = Add({x}, o{i})
  m{i} = LayerNormalization(a{i}, gain, shift)
  u{i} = MatMul(m{i}, up{i})
  r{i} = Relu(u{i})
  d{i} = MatMul(r{i}, down{i})
  x{i} = Add(a{i}, d{i})
"""
)
PARALLEL = (
    ATTENTION
    + """
  u{i} = MatMul(n{i}, up{i})
  r{i} = Relu(u{i})
  d{i} = MatMul(r{i}, down{i})
  b{i} = Add(o{i}, d{i})
  x{i} = Add(b{i}, {x})
"""
)


def stacked(block: str, depth: int = 3, *, picked: bool = False) -> Model:
    """Blocks, of which all positions are read, or the ``picked`` first one alone."""
    weights = "".join(
        f"float[16, 16] w{part}{i}, " for i in range(depth) for part in ("q", "k", "v", "o")
    ) + "".join(f"float[16, 24] up{i}, float[24, 16] down{i}, " for i in range(depth))
    names = ["x", *(f"x{i}" for i in range(depth))]
    body = "".join(block.format(i=i, x=names[i]) for i in range(depth))
    if picked:
        body += f"  picked = Gather <axis = 1> ({names[-1]}, first)\n"
        names.append("picked")
    return texts.model_of(PRE_NORM.format(weights=weights, body=body, last=names[-1]))


def borders(model: Model) -> list[tuple[str, str]]:
    return [(layer.entry.name, layer.exit.name) for layer in layers(model)]


def test_layers_of_bert(tiny_bert):
    found = layers(tiny_bert)
    assert [layer.name for layer in found] == ["encoder.layer.0", "encoder.layer.1"]
    assert borders(tiny_bert) == [
        ("embeddings.LayerNorm", "encoder.layer.0.output.LayerNorm"),
        ("encoder.layer.0.output.LayerNorm", "last_hidden_state"),
    ]
    assert [[group.kind for group in layer.groups] for layer in found] == [[HEAD, FFN]] * 2
    assert [len(layer.linears) for layer in found] == [6, 6]


def test_serial_blocks_with_the_normalisation_first():
    assert borders(stacked(SERIAL)) == [("x", "x0"), ("x0", "x1"), ("x1", "x2")]


def test_parallel_blocks():
    model = stacked(PARALLEL)
    assert borders(model) == [("x", "x0"), ("x0", "x1"), ("x1", "x2")]
    assert [len(layer.linears) for layer in layers(model)] == [6, 6, 6]


@pytest.mark.parametrize("block", [SERIAL, PARALLEL])
def test_a_last_block_that_computes_one_position_is_one_and_so_is_the_one_before(block: str) -> None:
    model = stacked(block, picked=True)
    Pipeline.parse("simplify").run(model, Context())
    assert borders(model)[:2] == [("x", "x0"), ("x0", "x1")]
    (last,) = layers(model)[2:]
    assert last.entry.shape == last.exit.shape == ir.Shape(["batch", 1, 16])
    assert len(last.linears) == 6


def test_groups_at_hand_are_used():
    model = stacked(SERIAL, depth=1)
    groups = couplings(model)
    assert set(layers(model, groups)[0].groups) <= set(groups)


def test_a_model_without_attention_has_no_layers():
    assert layers(texts.model_of(texts.MLP, opset=20)) == []


def test_depth_is_no_problem():
    """96 blocks: nothing recurses over the depth, and the work per block stays the same."""
    model = Model(ir.from_proto(Bert(layers=96, hidden=8, heads=2, ffn=16).model()))
    groups = couplings(model)
    assert sum(group.kind == HEAD for group in groups) == sum(group.kind == FFN for group in groups) == 96
    found = layers(model, groups)
    assert len(found) == 96
    assert all(np.array([len(layer.groups) == 2 for layer in found]))
