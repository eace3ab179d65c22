"""Small models whose FFN is a mixture of experts, as exporters write them."""

from __future__ import annotations

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
from onnx import numpy_helper

from graphcompress.data.load import Samples
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.context import Context

EXPERTS, WIDTH, HIDDEN, BLOCKS = 4, 32, 64, 2

ROUTER = """
    logits{n} = MatMul(h{n}, router{n})
    gates{n} = Softmax <axis = -1> (logits{n})
"""

# Every token goes through every expert, and the gates weigh the answers.
DENSE = """
    wide{n} = Unsqueeze(h{n}, one)
    up{n} = MatMul(wide{n}, up_weight{n})
    act{n} = Relu(up{n})
    down{n} = MatMul(act{n}, down_weight{n})
    turned{n} = Transpose <perm = [0, 2, 1]> (gates{n})
    shares{n} = Unsqueeze(turned{n}, last)
    weighed{n} = Mul(down{n}, shares{n})
    mixed{n} = ReduceSum <keepdims = 0> (weighed{n}, one)
    h{m} = Add(h{n}, mixed{n})
"""

# Two experts are looked up for every token, as PyTorch's exporter writes them: [out, in] on the left.
LOOKED_UP = """
    share{n}, index{n} = TopK <axis = -1> (gates{n}, two)
    index_column{n} = Reshape(index{n}, column)
    share_column{n} = Reshape(share{n}, column)
    token{n} = Unsqueeze(h{n}, two)
    tokens{n} = Expand(token{n}, twice)
    rows{n} = Reshape(tokens{n}, rows)
    a{n} = GatherND(up_weight{n}, index_column{n})
    columns{n} = Unsqueeze(rows{n}, last)
    b{n} = MatMul(a{n}, columns{n})
    up{n} = Squeeze(b{n}, last)
    gate{n}, value{n} = Split <axis = 1, num_outputs = 2> (up{n})
    swish{n} = Sigmoid(gate{n})
    left{n} = Mul(gate{n}, swish{n})
    act{n} = Mul(left{n}, value{n})
    c{n} = GatherND(down_weight{n}, index_column{n})
    hidden{n} = Unsqueeze(act{n}, last)
    d{n} = MatMul(c{n}, hidden{n})
    down{n} = Squeeze(d{n}, last)
    weighed{n} = Mul(down{n}, share_column{n})
    shape{n} = Shape(h{n})
    sizes{n} = Concat <axis = 0> (shape{n}, minus_two)
    split{n} = Gather(sizes{n}, order)
    pairs{n} = Reshape(weighed{n}, split{n})
    mixed{n} = ReduceSum <keepdims = 0> (pairs{n}, two)
    h{m} = Add(h{n}, mixed{n})
"""


def mixture(form: str, seed: int = 0, *, simplified: bool = True) -> Model:
    """x [batch, length, WIDTH] → y of the same shape, through BLOCKS mixtures of EXPERTS experts."""
    rng = np.random.default_rng(seed)
    blocks = "".join((ROUTER + form).format(n=n, m=n + 1) for n in range(BLOCKS))
    text = f"""<ir_version: 9, opset_import: ["" : 18]>
    g (float[batch, length, {WIDTH}] x) => (float[batch, length, {WIDTH}] y) {{
        h0 = Identity(x) {blocks} y = Identity(h{BLOCKS})
    }}"""
    proto = onnx.parser.parse_model(text)
    dense = "GatherND" not in form
    for n in range(BLOCKS):
        up = (EXPERTS, WIDTH, HIDDEN) if dense else (EXPERTS, 2 * HIDDEN, WIDTH)
        down = (EXPERTS, HIDDEN, WIDTH) if dense else (EXPERTS, WIDTH, HIDDEN)
        shapes = {"router": (WIDTH, EXPERTS), "up_weight": up, "down_weight": down}
        for name, shape in shapes.items():
            array = (rng.normal(size=shape) / 6).astype(np.float32)
            proto.graph.initializer.append(numpy_helper.from_array(array, f"{name}{n}"))
    constants = {
        "one": [1],
        "two": [2],
        "last": [-1],
        "column": [-1, 1],
        "rows": [-1, WIDTH],
        "twice": [1, 1, 2, 1],
        "minus_two": [2],
        "order": [0, 1, 3, 2],
    }
    for name, numbers in constants.items():
        proto.graph.initializer.append(numpy_helper.from_array(np.array(numbers), name))
    model = Model(ir.from_proto(proto))
    if simplified:
        Simplify().run(model, Context())
    return model


def rows(batch: int, length: int, seed: int = 0) -> dict[str, np.ndarray]:
    """A feed."""
    rng = np.random.default_rng(seed)
    return {"x": rng.normal(size=(batch, length, WIDTH)).astype(np.float32)}


def samples(count: int = 32, length: int = 9) -> Samples:
    """Samples of one length."""
    return Samples([{"x": rows(1, length, seed)["x"][0]} for seed in range(count)])


def answers(model: Model, feed: dict[str, np.ndarray]) -> np.ndarray:
    """What ONNX Runtime answers, with nothing fused."""
    with Runner(model, optimize=False) as runner:
        return runner(feed)["y"]
