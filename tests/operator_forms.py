"""Models, runs and checks that the tests of operator forms share."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime

from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.common.form_choice import same_outputs

HEADER = '<ir_version: 10, opset_import: ["" : {opset}, "com.microsoft" : 1]>\n'


def model_of(text, weights=None, opset=20):
    proto = onnx.parser.parse_model(HEADER.format(opset=opset) + text)
    for name, array in (weights or {}).items():
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.asarray(array), name))
    return Model(ir.from_proto(proto))


def random(*shape, seed=0):
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def run(model, **feed):
    with Runner(model) as runner:
        return runner(feed)


def applied(model, family, form):
    twin = model.clone()
    with Rewriter(twin, Context()) as rw:
        for site in family.sites(twin):
            family.forms[form](rw, site)
    return twin


def ops(model):
    return [node.op_type for node in model.graph]


def optimised_ops(model, folder):
    """Operators after the runtime's own rewriting with default options."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    model.save(folder / "model.onnx")
    onnxruntime.InferenceSession(str(folder / "model.onnx"), options)
    return [node.op_type for node in onnx.load(folder / "optimised.onnx").graph.node]


def check_forms(model, family, sites, **feed):
    """Every form of ``family`` gives what ``model`` gives, also when it is applied twice."""
    assert len(family.sites(model)) == sites
    expected = run(model, **feed)
    for form in family.forms:
        twin = applied(model, family, form)
        assert same_outputs([expected], [run(twin, **feed)]), form
        assert ops(twin) != ops(model), form
        assert [v.name for v in twin.graph.outputs] == [v.name for v in model.graph.outputs]
        again = applied(twin, family, form)
        assert same_outputs([expected], [run(again, **feed)]), form


RESIDUAL = """
g (float[b,s,8] x, float[b,s,8] y) => (float[b,s,8] out) {{
  z = {op}(x, y) out = LayerNormalization(z, g, h)
}}
"""


def norm_weights():
    return {"g": 1 + random(8), "h": random(8, seed=1)}


def quantised_weight(rows, columns, seed=0):
    dense = random(rows, columns, seed=seed)
    scale = np.abs(dense).max(0) / 63
    return np.round(dense / scale).astype(np.int8), scale.astype(np.float32)


def static_model(columns=6, bias=True, count=1, per_channel=True):
    """Linears over one quantised input, between DequantizeLinear pairs."""
    body, outs = ["q = QuantizeLinear(x, xs, xz)"], []
    weights = {"xs": np.float32(0.03), "xz": np.uint8(120)}
    for i in range(count):
        values, scale = quantised_weight(16, columns + i, seed=i)
        scale = scale if per_channel else scale.max()
        weights |= {f"w{i}": values, f"s{i}": scale, f"z{i}": np.zeros(np.shape(scale), np.int8)}
        axis = "<axis = 1>" if per_channel else ""
        last = "m" if bias else "out"
        body += [f"d{i} = DequantizeLinear(q, xs, xz)", f"v{i} = DequantizeLinear {axis} (w{i}, s{i}, z{i})"]
        body += [f"{last}{i} = MatMul(d{i}, v{i})"]
        if bias:
            weights[f"b{i}"] = random(columns + i, seed=9 + i)
            body += [f"out{i} = Add(b{i}, m{i})"]
        outs.append(f"float[b,s,{columns + i}] out{i}")
    return model_of(f"g (float[b,s,16] x) => ({', '.join(outs)}) {{ {' '.join(body)} }}", weights)
