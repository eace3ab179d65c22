"""Weights and blocks are found again, whatever passes made of them."""

from __future__ import annotations

import pytest

from graphcompress.data.samples import Samples
from graphcompress.graph.model import Model
from graphcompress.pipeline.anatomy import Parts
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.context import Context
from graphcompress.plugin.schemes import UINT8, integer_products


@pytest.mark.parametrize("scheme", ["static", "dynamic"])
def test_integers_are_the_weights_that_they_were_made_from(
    tiny_bert: Model, tiny_samples: Samples, scheme: str
) -> None:
    """A dynamic product is a MatMulInteger, which is no linear."""
    parts = Parts(tiny_bert)
    ctx = Context(
        tiny_samples if scheme == "static" else None, Capabilities(integer_products(UINT8, dynamic=True))
    )
    passes = f"prune{{ffn=0.25 heads=0.25 scope=layer}},int8{{scheme={scheme}}}"
    Pipeline.parse(passes).run(tiny_bert, ctx, allow=["prune", "int8"])
    left = parts.left(tiny_bert)
    assert [one.name for one in left.weights] == [one.name for one in parts.anatomy.weights]
    assert [(block.heads, block.ffn_nodes) for block in left.blocks] == [(3, 48), (3, 48)]
    sizes = {one.name: (one.rows, one.columns, one.stored_bytes) for one in left.weights}
    rows, columns, stored = sizes["encoder.layer.0.intermediate.dense.weight_t"]
    assert (rows, columns) == (32, 48)
    assert 32 * 48 < stored < 32 * 48 + 9 * 48
