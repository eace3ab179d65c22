"""One operator of ONNX Runtime as a model, and its kernel as the oracle."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphcompress.files.runtime import session_of
from graphcompress.graph.model import Model
from graphcompress.passes.simplify.fused.operators import standardise
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter

BATCH, LENGTH, PAST, HIDDEN, HEADS = 7, 5, 6, 12, 3


TOLERANCE = 1e-5


NAMES = {BATCH: "batch", LENGTH: "length", PAST: "past", LENGTH + PAST: "total", 2 * BATCH: "2*batch"}


def random(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng([seed, *shape]).standard_normal(shape).astype(np.float32)


def int32(*numbers: object) -> np.ndarray:
    return np.array(*numbers, np.int32)


def model_of(
    node: onnx.NodeProto,
    inputs: Mapping[str, np.ndarray],
    stored: Mapping[str, np.ndarray],
    *,
    opset: int = 18,
    symbols: bool = True,
    ranks: Mapping[str, int] | None = None,
) -> onnx.ModelProto:
    """One node; inputs of variable size, named by how large they are here (batch, length …)."""
    infos = [
        helper.make_tensor_value_info(
            name,
            helper.np_dtype_to_tensor_dtype(array.dtype),
            [NAMES.get(size, size) if symbols else size for size in array.shape],
        )
        for name, array in inputs.items()
    ]
    outputs = [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in node.output if name]
    for info in outputs:
        info.type.tensor_type.elem_type = (ranks or {}).get(info.name, TensorProto.FLOAT)
        info.type.tensor_type.ClearField("shape")
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph([node], "one", infos, outputs, tensors)
    opsets = [helper.make_opsetid("", opset), helper.make_opsetid("com.microsoft", 1)]
    return helper.make_model(graph, opset_imports=opsets, ir_version=8)


def run(model: onnx.ModelProto, feed: Mapping[str, np.ndarray]) -> list[np.ndarray]:
    return session_of(model.SerializeToString()).run(None, dict(feed))


def check(
    op_type: str,
    tmp_path,
    inputs: Mapping[str, np.ndarray],
    stored: Mapping[str, np.ndarray] | None = None,
    *,
    order: Sequence[str] = (),
    outputs: Sequence[str] = ("out",),
    domain: str = "com.microsoft",
    opset: int = 18,
    tolerance: float = TOLERANCE,
    kinds: Mapping[str, int] | None = None,
    **attributes: object,
) -> Model:
    """Write the node in standard operators: nothing of it is left, the outputs are those of its kernel."""
    names = order or [*inputs, *(stored or {})]
    node = helper.make_node(op_type, names, list(outputs), name="fused", domain=domain, **attributes)
    proto = model_of(node, inputs, stored or {}, opset=opset, ranks=kinds)
    onnx.save(proto, tmp_path / "model.onnx")
    model = Model.load(tmp_path / "model.onnx")
    with Rewriter(model, Context()) as rw:
        standardise(rw)
    assert not rw.skipped
    assert all(not n.domain and n.op_type != "SimplifiedLayerNormalization" for n in model.graph)
    path = model.save(tmp_path / "standard.onnx")
    if opset >= 17 or op_type != "LayerNormalization":
        onnx.checker.check_model(onnx.load(path), full_check=True)
    for got, want in zip(run(onnx.load(path), inputs), run(proto, inputs), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_allclose(got, want, rtol=0, atol=tolerance * max(1.0, np.abs(want).max()))
    return model


MASKS = {
    "none": None,
    "ones and zeros": int32([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0], [0, 1, 1, 1, 0], *[[1, 1, 0, 0, 0]] * 4]),
    "per query": (np.random.default_rng(1).random((BATCH, LENGTH, LENGTH)) < 0.7).astype(np.int32),
    "ends": int32([5, 3, 1, 4, 5, 2, 3]),
    "ends and starts": int32([5, 4, 3, 5, 5, 2, 4, 0, 2, 1, 0, 3, 1, 0]),
}


def load(tmp_path, node: onnx.NodeProto, inputs, stored, **more) -> Model:
    onnx.save(model_of(node, inputs, stored, **more), tmp_path / "model.onnx")
    return Model.load(tmp_path / "model.onnx")


def attention_node(**attributes: object) -> onnx.NodeProto:
    names = ["x", "weight", "", "mask"]
    return helper.make_node(
        "Attention", names, ["out"], name="deep", domain="com.microsoft", num_heads=HEADS, **attributes
    )
