"""Linear maps and embeddings are found whatever operators they were written with."""

from __future__ import annotations

from graphcompress.analysis.cost import macs
from graphcompress.analysis.linears import embeddings, linears
from graphcompress.graph.model import Model


def test_tiny_bert_has_six_linears_per_layer_and_three_embeddings(tiny_bert: Model) -> None:
    found = linears(tiny_bert)
    assert len(found) == 12
    assert {(item.in_features, item.out_features) for item in found} == {(32, 32), (32, 64), (64, 32)}
    assert all(item.bias is not None and not item.transposed for item in found)
    assert [item.rows for item in embeddings(tiny_bert)] == [100, 2, 64]


def test_layers_is_a_glob_over_names(tiny_bert: Model) -> None:
    assert len(linears(tiny_bert, "*intermediate*")) == 2


def test_macs_follow_the_formula(tiny_bert: Model) -> None:
    length, hidden, ffn = 16, 32, 64
    linear = length * (4 * hidden * hidden + 2 * hidden * ffn)
    attention = 2 * length * length * hidden
    assert macs(tiny_bert, length=length) == 2 * (linear + attention)
