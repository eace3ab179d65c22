"""A small model of random weights that scores next tokens and has massive activations, as language models do.

At the first token, of id 0, one feature of one activation is hundreds of times as large as all others
(arXiv:2402.17762).
"""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
from onnx import TensorProto, helper, numpy_helper

from graphcompress.data.load import Samples
from graphcompress.graph.model import Model

VOCABULARY, WIDTH, INNER, BLOCKS = 96, 32, 64, 2


def massive_model(size: float = 3000.0) -> Model:
    """ids → embedding → blocks of LayerNormalization and a gated FFN with a residual → logits.

    ``size`` is about the largest entry of the activation in the first block; 1 plants nothing.
    """
    rng = np.random.default_rng(0)

    def normal(*shape: int, scale: float = 1.0) -> np.ndarray:
        return (scale * rng.standard_normal(shape)).astype(np.float32)

    table = normal(VOCABULARY, WIDTH)
    table[:, 0] = 0.0
    table[0] = 0.0
    table[0, 0] = 8.0  # the first token alone uses this feature
    arrays = {"table": table, "zeros": np.zeros(WIDTH, np.float32), "ones": np.ones(WIDTH, np.float32)}
    nodes = [helper.make_node("Gather", ["table", "input_ids"], ["x0"])]
    for block in range(BLOCKS):
        gate, up = normal(WIDTH, INNER, scale=0.4), normal(WIDTH, INNER, scale=0.4)
        down = normal(INNER, WIDTH, scale=0.3)
        if block == 0:
            gate[0], up[0] = 0.0, 0.0
            gate[0, 0], up[0, 0] = 2.0, size / 56.0
            down[0] = normal(WIDTH, scale=0.1 / size)
        arrays |= {f"gate{block}": gate, f"up{block}": up, f"down{block}": down}
        steps = [
            ("LayerNormalization", ["x{}", "ones", "zeros"], "n{}"),
            ("MatMul", ["n{}", "gate{}"], "g{}"),
            ("MatMul", ["n{}", "up{}"], "u{}"),
            ("Sigmoid", ["g{}"], "s{}"),
            ("Mul", ["g{}", "s{}"], "a{}"),
            ("Mul", ["a{}", "u{}"], "h{}"),
            ("MatMul", ["h{}", "down{}"], "d{}"),
        ]
        for op, inputs, output in steps:
            names = [name.format(block) for name in inputs]
            nodes.append(helper.make_node(op, names, [output.format(block)]))
        nodes.append(helper.make_node("Add", [f"x{block}", f"d{block}"], [f"x{block + 1}"]))
    arrays["head"] = normal(WIDTH, VOCABULARY, scale=0.5)
    nodes += [
        helper.make_node("LayerNormalization", [f"x{BLOCKS}", "ones", "zeros"], ["last"]),
        helper.make_node("MatMul", ["last", "head"], ["logits"]),
    ]
    graph = helper.make_graph(
        nodes,
        "massive",
        [helper.make_tensor_value_info("input_ids", TensorProto.INT64, ["batch", "sequence"])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", "sequence", VOCABULARY])],
        [numpy_helper.from_array(array, name) for name, array in arrays.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return Model(ir.from_proto(onnx.shape_inference.infer_shapes(proto)))


def texts(count: int = 32) -> Samples:
    """Texts of ten tokens that begin with the first token."""
    rng = np.random.default_rng(1)
    rows = rng.integers(1, VOCABULARY, (count, 10))
    rows[:, 0] = 0
    return Samples([{"input_ids": row} for row in rows])
