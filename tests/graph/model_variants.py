"""Forms in which models come."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
from bert import Bert
from onnx import TensorProto, helper, numpy_helper

from graphcompress.graph.model import Model

WIDTH = 32


def bert() -> onnx.ModelProto:
    return Bert().model()


def random(*shape: int) -> np.ndarray:
    return (0.2 * np.random.default_rng(shape).standard_normal(shape)).astype(np.float32)


def stem_and_head() -> onnx.ModelProto:
    """Frames through two convolutions, the layers, and a kernel of 1 in front of a softmax."""
    model = bert()
    graph = model.graph
    index = next(i for i, node in enumerate(graph.node) if "embeddings.LayerNorm" in node.output)
    stem = [
        helper.make_node(
            "Conv", ["frames", "stem.0", "stem.0.bias"], ["wide"], pads=[1, 1], kernel_shape=[3]
        ),
        helper.make_node("Relu", ["wide"], ["stem.bent"]),
        helper.make_node("Conv", ["stem.bent", "stem.1", "stem.1.bias"], ["stem.out"], kernel_shape=[1]),
        helper.make_node("Transpose", ["stem.out"], ["stem"], perm=[0, 2, 1]),
        helper.make_node("Add", ["stem", "embeddings.sum"], ["stem.sum"]),
    ]
    graph.node[index].input[0] = "stem.sum"
    head = [
        helper.make_node("Transpose", ["last_hidden_state"], ["turned"], perm=[0, 2, 1]),
        helper.make_node("Conv", ["turned", "head", "head.bias"], ["by_channel"], kernel_shape=[1]),
        helper.make_node("Transpose", ["by_channel"], ["by_frame"], perm=[0, 2, 1]),
        helper.make_node("LogSoftmax", ["by_frame"], ["logits"], axis=-1),
    ]
    nodes = [*graph.node[:index], *stem, *graph.node[index:], *head]
    del graph.node[:], graph.output[:]
    graph.node.extend(nodes)
    stored = {"stem.0": random(16, 8, 3), "stem.1": random(WIDTH, 16, 1), "head": random(20, WIDTH, 1)}
    stored |= {f"{name}.bias": random(len(array)) for name, array in stored.items()}
    graph.initializer.extend(numpy_helper.from_array(array, name) for name, array in stored.items())
    graph.input.append(helper.make_tensor_value_info("frames", TensorProto.FLOAT, ["batch", 8, "sequence"]))
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", 20]))
    return model


def load(proto: onnx.ModelProto, tmp_path: Path) -> Model:
    onnx.save(proto, tmp_path / "model.onnx")
    return Model.load(tmp_path / "model.onnx")
