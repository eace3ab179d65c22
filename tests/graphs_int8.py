"""Small symmetric Q/DQ graphs."""

from pathlib import Path

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from graphcompress.graph.model import Model

WIDTH, HIDDEN, ROWS = 32, 64, 40


class Maker:
    """Collects nodes and constants of a graph."""

    def __init__(self, seed=0):
        self.rng = np.random.default_rng(seed)
        self.nodes, self.constants = [], []

    def constant(self, name, array):
        self.constants.append(numpy_helper.from_array(np.asarray(array), name))
        return name

    def node(self, op_type, *inputs, out, **attributes):
        self.nodes.append(helper.make_node(op_type, inputs, [out], name=f"n_{out}", **attributes))
        return out

    def rounded(self, x, scale=0.05, zero=0, dtype=np.int8):
        step = self.constant(f"{x}.scale", np.float32(scale))
        zero = self.constant(f"{x}.zero", dtype(zero))
        self.node("QuantizeLinear", x, step, zero, out=f"{x}.q")
        return self.node("DequantizeLinear", f"{x}.q", step, zero, out=f"{x}.dq")

    def linear(self, x, width, out_width, out, axis=1):
        values = self.constant(f"{out}.w", self.rng.integers(-127, 128, (width, out_width)).astype(np.int8))
        size = out_width if axis == 1 else width
        scale = self.constant(f"{out}.s", self.rng.uniform(0.001, 0.003, size).astype(np.float32))
        zero = self.constant(f"{out}.z", np.zeros(size, np.int8))
        weight = self.node("DequantizeLinear", values, scale, zero, out=f"{out}.dq_w", axis=axis)
        bias = self.constant(f"{out}.b", self.rng.standard_normal(out_width).astype(np.float32))
        self.node("MatMul", x, weight, out=f"{out}.product")
        return self.node("Add", f"{out}.product", bias, out=out)

    def model(self, inputs, outputs, opset=18):
        graph = helper.make_graph(self.nodes, "g", inputs, outputs, self.constants)
        imports = [helper.make_opsetid("", opset)]
        return helper.make_model(graph, opset_imports=imports, ir_version=9)


def tensor(name, kind, *shape):
    return helper.make_tensor_value_info(name, kind, shape)


def floats(name, width):
    return tensor(name, TensorProto.FLOAT, "batch", "length", width)


def saved(proto: onnx.ModelProto, folder: Path) -> Model:
    path = folder / "given.onnx"
    onnx.save(proto, path)
    return Model.load(path)


def network(folder, *, opset=18, axis=1, zero=0, dtype=np.int8):
    """ids → int8 table → LayerNormalization → two int8 linears with a GELU-like Erf between them."""
    make = Maker()
    table = make.constant("table", make.rng.integers(-127, 128, (ROWS, WIDTH)).astype(np.int8))
    steps = make.constant("table.s", np.full((ROWS, 1), 0.02, np.float32))
    make.node("Gather", table, "ids", out="rows")
    make.node("Gather", steps, "ids", out="row_steps")
    make.node("Cast", "rows", out="rows.float", to=TensorProto.FLOAT)
    make.node("Mul", "rows.float", "row_steps", out="embedded")
    gain = make.constant("gain", np.ones(WIDTH, np.float32))
    shift = make.constant("shift", np.zeros(WIDTH, np.float32))
    make.node("LayerNormalization", "embedded", gain, shift, out="normal", axis=-1)
    x = make.linear(make.rounded("normal", zero=zero, dtype=dtype), WIDTH, HIDDEN, "wide", axis=axis)
    make.node("Erf", x, out="bent")
    make.linear(make.rounded("bent", scale=0.01), HIDDEN, WIDTH, "narrow")
    make.node("Add", "narrow", "normal", out="y")
    proto = make.model([tensor("ids", TensorProto.INT64, "batch", "length")], [floats("y", WIDTH)], opset)
    return saved(proto, folder)


def kronecker_weight(make, sizes, rank):
    """A constant expression over factors of these sizes."""
    n1, m1, n2, m2 = sizes
    a = make.constant("a", make.rng.standard_normal((n1 * m1, rank)).astype(np.float32))
    b = make.constant("b", make.rng.standard_normal((rank, n2 * m2)).astype(np.float32))
    arranged = make.node("MatMul", a, b, out="arranged")
    if n2 > 1 and m1 > 1:
        make.node("Reshape", arranged, make.constant("s1", np.array([n1, m1, n2, m2])), out="terms")
        arranged = make.node("Transpose", "terms", out="moved", perm=[0, 2, 1, 3])
    return make.node("Reshape", arranged, make.constant("s2", np.array([n1 * n2, m1 * m2])), out="weight")


def kronecker(folder, sizes=(16, 16, 16, 32), rank=1):
    """An int8 product whose weight is quantised from a sum of Kronecker products."""
    _, m1, _, m2 = sizes
    make = Maker()
    weight = kronecker_weight(make, sizes, rank)
    scale = make.constant("ws", np.full(m1 * m2, 0.06, np.float32))
    zero = make.constant("wz", np.zeros(m1 * m2, np.int8))
    make.node("QuantizeLinear", weight, scale, zero, out="wq", axis=1)
    make.node("DequantizeLinear", "wq", scale, zero, out="wdq", axis=1)
    make.node("MatMul", make.rounded("x"), "wdq", out="product")
    bias = make.constant("bias", np.ones(m1 * m2, np.float32))
    make.node("Add", "product", bias, out="y")
    proto = make.model([floats("x", sizes[0] * sizes[2])], [floats("y", m1 * m2)])
    return saved(proto, folder)


def smoothed_kronecker(folder, gain_takes_it, sizes=(8, 8, 8, 8), rank=1):
    """x → gain → int8 product over Kronecker factors; smoothing went into the gain, or a Mul of its own."""
    n1, m1, n2, m2 = sizes
    n, width = n1 * n2, m1 * m2
    make = Maker()
    factors = make.rng.uniform(0.5, 2.0, n).astype(np.float32)
    gain = make.rng.uniform(0.5, 2.0, n).astype(np.float32)
    first = gain / factors if gain_takes_it else 1 / factors
    make.node("Mul", "x", make.constant("gain", first.astype(np.float32)), out="normal")
    weight = kronecker_weight(make, sizes, rank)
    make.node("Mul", weight, make.constant("f", factors[:, None]), out="equalised")
    scale = make.constant("ws", np.full(width, 0.15, np.float32))
    zero = make.constant("wz", np.zeros(width, np.int8))
    make.node("QuantizeLinear", "equalised", scale, zero, out="wq", axis=1)
    make.node("DequantizeLinear", "wq", scale, zero, out="wdq", axis=1)
    make.node("MatMul", make.rounded("normal", scale=0.1), "wdq", out="y")
    return saved(make.model([floats("x", n)], [floats("y", width)]), folder)
