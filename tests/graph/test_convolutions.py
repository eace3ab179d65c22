"""Convolutions: those with a kernel of 1 are linears, others are left alone with the reason."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from model_variants import WIDTH, load, random, stem_and_head
from onnx import TensorProto, helper, numpy_helper

from graphcompress.analysis.cost import macs
from graphcompress.analysis.linears import linears
from graphcompress.files.runtime import session_of
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.context import Context


def reasons_of(model: Model) -> dict[str, str]:
    record = Simplify().run(model, Context())
    return {item.name: item.reason for item in record.skipped}


def test_a_kernel_of_1_beside_a_transpose_is_a_linear(tmp_path) -> None:
    model = load(stem_and_head(), tmp_path)
    kept = reasons_of(model)
    assert [linear.name for linear in linears(model) if linear.name in ("stem.1", "head")] == [
        "stem.1",
        "head",
    ]
    assert "more than one position" in kept["stem.0"]
    assert [node.inputs[1].name for node in model.graph if node.op_type == "Conv"] == ["stem.0"]
    by_name = {linear.name: (linear.in_features, linear.out_features) for linear in linears(model)}
    assert (by_name["stem.1"], by_name["head"]) == ((16, WIDTH), (WIDTH, 20))


@pytest.mark.parametrize(
    ("shape", "attributes", "words"),
    [
        ((6, 2, 1), {"group": 2}, "grouped"),
        ((6, 4, 1), {"pads": [1, 0]}, "pads or strides"),
        ((6, 4, 1), {"strides": [2]}, "pads or strides"),
        ((6, 4, 1), {"auto_pad": "SAME_UPPER"}, "pads by itself"),
        ((6, 4, 2), {}, "more than one position"),
        ((6, 4, 1), {}, "channel order"),
    ],
)
def test_other_convolutions_are_left_alone_with_the_reason(shape, attributes, words, tmp_path) -> None:
    model = load(one_convolution(shape, attributes, transposed=words != "channel order"), tmp_path)
    assert words in reasons_of(model)["weight"]
    assert [node.op_type for node in model.graph if node.op_type == "Conv"] == ["Conv"]


@pytest.mark.parametrize("rank", [3, 4])
@pytest.mark.parametrize("biased", [True, False])
def test_kernels_of_1_over_lines_and_images(rank, biased, tmp_path) -> None:
    proto = one_convolution((6, 4, *[1] * (rank - 2)), {}, transposed=True, biased=biased)
    model = load(proto, tmp_path)
    feed = {"x": random(2, *[5] * (rank - 2), 4)}
    reasons_of(model)
    assert [node.op_type for node in model.graph][:1] == ["MatMul"]
    want = session_of(tmp_path / "model.onnx").run(None, feed)[0]
    with Runner(model) as runner:
        np.testing.assert_allclose(runner(feed)["y"], want, rtol=0, atol=1e-5)


def one_convolution(shape, attributes, *, transposed: bool, biased: bool = True) -> onnx.ModelProto:
    rank = len(shape)
    last = [0, rank - 1, *range(1, rank - 1)]
    nodes = [helper.make_node("Transpose", ["x"], ["channels"], perm=last)] if transposed else []
    inputs = ["channels" if transposed else "x", "weight", *(["bias"] if biased else [])]
    nodes.append(helper.make_node("Conv", inputs, ["y"], **attributes))
    stored = {"weight": random(*shape)} | ({"bias": random(shape[0])} if biased else {})
    sizes = ["batch", *["size"] * (rank - 2)]
    sizes.insert(rank if transposed else 1, 4)
    graph = helper.make_graph(
        nodes,
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, sizes)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(array, name) for name, array in stored.items()],
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)


def test_the_cost_of_a_convolution(tmp_path) -> None:
    proto = one_convolution((6, 4, 3), {"pads": [1, 1]}, transposed=False)
    proto.graph.output[0].CopyFrom(
        helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 6, "size"])
    )
    model = load(proto, tmp_path)
    assert macs(model, batch=2, length=10) == 2 * 10 * 6 * 4 * 3
