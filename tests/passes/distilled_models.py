"""Models, samples and one call to train, for the tests of distill."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
from bert import Bert
from conftest import random_samples
from onnx import TensorProto, helper, numpy_helper

from graphcompress.data.samples import Samples
from graphcompress.graph.model import Model
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context, Training

QUICK = "distill{steps=12 lr=0.003 batch=8 evaluations=3}"
ALLOWED = ("prune", "distill", "int8")


def trained(model: Model, passes: str, training: Training, **context: object) -> list[object]:
    ctx = Context(samples=random_samples(16, seed=3), training=training, **context)  # type: ignore[arg-type]
    return list(Pipeline.parse(passes).run(model, ctx, allow=[name for name in ALLOWED if name in passes]))


def weights(model: Model) -> dict[str, np.ndarray]:
    return {value.name: value.const_value.numpy().copy() for value in model.initializers()}


def classifier(rows: int = 20, classes: int = 3, width: int = 8) -> Model:
    """Logits [batch, classes] from the mean of embedded tokens."""
    rng = np.random.default_rng(0)
    tensors = {
        "table": rng.standard_normal((rows, width)),
        "weight": rng.standard_normal((width, classes)),
    }
    nodes = [
        helper.make_node("Gather", ["table", "input_ids"], ["embedded"]),
        helper.make_node("ReduceMean", ["embedded", "axis"], ["pooled"], keepdims=0),
        helper.make_node("MatMul", ["pooled", "weight"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "classifier",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", classes])],
        [
            *(numpy_helper.from_array(array.astype(np.float32), name) for name, array in tensors.items()),
            numpy_helper.from_array(np.array([1]), "axis"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return Model(ir.from_proto(proto))


def labelled(labels: list[object]) -> Samples:
    rng = np.random.default_rng(1)
    return Samples([{"input_ids": rng.integers(0, 20, 6)} for _ in labels], {"label": labels})


def other_bert() -> Model:
    """The same architecture with other weights."""
    return Model(ir.from_proto(Bert(seed=1).model()))
