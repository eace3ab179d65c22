"""What each pass makes of a small BERT, as text: operators, names and shapes, no numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import pytest
from conftest import random_samples

from graphcompress.data.samples import Samples
from graphcompress.graph.model import Model
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context, Training

GOLDEN = Path(__file__).parent / "golden"
PASSES = {
    "simplify": "simplify",
    "kron": 'kron{shape="16x16,2x2" rank=2}',
    "prune": "prune{ffn=0.5 heads=0.5 layers=1}",
    "int8": "int8",
}


@pytest.mark.parametrize("name", PASSES)
def test_tiny_bert_becomes_the_golden_graph(tiny_bert: Model, tiny_samples: Samples, name: str) -> None:
    """With the file removed, a run writes it anew and fails; read the difference before committing it."""
    passed(tiny_bert, PASSES[name], Context(samples=tiny_samples))
    golden = GOLDEN / f"{name}_tiny_bert.txt"
    text = graph_text(tiny_bert)
    if not golden.exists():
        golden.write_text(text, encoding="utf-8")
        pytest.fail(f"{golden.name} was missing and has been written")
    assert text == golden.read_text(encoding="utf-8")


def test_training_leaves_the_graph_as_it_is(
    tiny_bert: Model, tiny_path_twin: Model, tiny_samples: Samples
) -> None:
    pytest.importorskip("torch")
    ctx = Context(samples=tiny_samples, training=Training(random_samples(16, seed=1)))
    passed(tiny_path_twin, PASSES["prune"], ctx)
    passed(tiny_bert, f"{PASSES['prune']},distill{{steps=12 lr=0.003 batch=8 evaluations=3}}", ctx)
    assert graph_text(tiny_bert) == graph_text(tiny_path_twin)
    name = "encoder.layer.1.output.dense.weight_t"
    before, after = (weight(model, name) for model in (tiny_path_twin, tiny_bert))
    assert np.abs(after - before).max() > 0.01


def passed(model: Model, passes: str, ctx: Context) -> None:
    """Run ``passes``, whatever they lose: only the graph is looked at."""
    pipeline = Pipeline.parse(passes)
    list(pipeline.run(model, ctx, allow=[step.name for step in pipeline.passes]))


def weight(model: Model, name: str) -> np.ndarray:
    tensor = model.graph.initializers[name].const_value
    assert tensor is not None
    return tensor.numpy()


def graph_text(model: Model) -> str:
    """One line for each weight with its type and shape, then one for each node."""
    weights = sorted(f"{value.name} {value.shape} = {value.dtype}" for value in model.initializers())
    return "\n".join([*weights, *map(node_text, model.graph)]) + "\n"


def node_text(node: ir.Node) -> str:
    out = node.outputs[0]
    inputs = ", ".join(value.name or "" if value is not None else "_" for value in node.inputs)
    return f"{out.name} {out.shape} = {node.op_type}({inputs})"
