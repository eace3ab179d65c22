"""Operator forms: each computes what the original computes, and refuses what it does not match."""

import numpy as np
import onnx
import onnx.parser
import onnx_ir as ir
import onnxruntime
import pytest

from graphcompress.graph.model import Model
from graphcompress.graph.runtime import Runner
from graphcompress.measure.cache import MeasurementCache
from graphcompress.measure.timing import FORM_LEAST_ROUNDS, FORM_ROUNDS
from graphcompress.numerics.kronecker import Factors, Split
from graphcompress.plugin.base import Context
from graphcompress.rewrite.kronecker import write_expression
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.opsets.lowering import legalise
from graphcompress.targets.common.attention import FusedAttention
from graphcompress.targets.common.family import UNCHANGED
from graphcompress.targets.common.form_choice import (
    choose_forms,
    fastest,
    measure_forms,
    same_outputs,
)
from graphcompress.targets.common.gelu import Gelu
from graphcompress.targets.common.integer_linear import IntegerLinear
from graphcompress.targets.common.unsigned_activations import unsigned_activations
from graphcompress.targets.cpu.int8_tables import DequantisedRows
from graphcompress.targets.cpu.kronecker import Kronecker, KroneckerTable
from graphcompress.targets.cpu.packed_linears import Packed
from graphcompress.targets.cpu.residual import Residual

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


# ---- residual

RESIDUAL = """
g (float[b,s,8] x, float[b,s,8] y) => (float[b,s,8] out) {{
  z = {op}(x, y) out = LayerNormalization(z, g, h)
}}
"""


def norm_weights():
    return {"g": 1 + random(8), "h": random(8, seed=1)}


def test_residual_sum_is_the_sum():
    model = model_of(RESIDUAL.format(op="Add"), norm_weights())
    check_forms(model, Residual(), 1, x=random(2, 3, 8), y=random(2, 3, 8, seed=2))
    assert ops(applied(model, Residual(), "sum")) == ["Sum", "LayerNormalization"]


def test_runtime_does_not_fuse_the_sum(tmp_path):
    model = model_of(RESIDUAL.format(op="Add"), norm_weights())
    assert "SkipLayerNormalization" in optimised_ops(model, tmp_path)
    assert optimised_ops(applied(model, Residual(), "sum"), tmp_path) == ["Sum", "LayerNormalization"]


@pytest.mark.parametrize("op", ["Mul", "Sub"])
def test_only_sums_are_residuals(op):
    assert Residual().sites(model_of(RESIDUAL.format(op=op), norm_weights())) == []


def test_adding_a_constant_is_no_residual():
    text = "g (float[b,s,8] x) => (float[b,s,8] out) { z = Add(x, h) out = LayerNormalization(z, g, h) }"
    assert Residual().sites(model_of(text, norm_weights())) == []


# ---- GELU

ROOT, ONE, HALF = np.float32(np.sqrt(2)), np.float32(1), np.float32(0.5)
GELU_ORDERS = {
    "x_times_halved": "d = Div(x, r) e = Erf(d) a = Add(e, one) h = Mul(half, a) out = Mul(x, h)",
    "half_last": "d = Div(x, r) e = Erf(d) a = Add(one, e) m = Mul(x, a) out = Mul(m, half)",
    "half_of_x_first": "i = Mul(x, half) d = Div(x, r) e = Erf(d) a = Add(e, one) out = Mul(i, a)",
    "inverse_root": "d = Mul(x, q) e = Erf(d) a = Add(e, one) m = Mul(a, x) out = Mul(half, m)",
    "operator": "out = Gelu(x)",
}


def gelu_model(body, prefix="", **weights):
    constants = {"r": ROOT, "q": 1 / ROOT, "one": ONE, "half": HALF, **weights}
    used = {
        name: value for name, value in constants.items() if f"{name}" in (prefix + body).replace(",", " ")
    }
    source = "w" if prefix else "x"
    return model_of(f"g (float[b,s,8] {source}) => (float[b,s,8] out) {{ {prefix} {body} }}", used)


@pytest.mark.parametrize("order", GELU_ORDERS)
def test_gelu_in_every_order(order):
    model = gelu_model(GELU_ORDERS[order])
    feed = {"x": 3 * random(2, 5, 8)}
    expected = run(model, **feed)
    assert len(Gelu().sites(model)) == 1
    for form in Gelu().forms:
        twin = applied(model, Gelu(), form)
        assert ops(twin) == ["Gelu"]
        assert twin.graph.node(0).domain == "com.microsoft"
        assert same_outputs([expected], [run(twin, **feed)])


@pytest.mark.parametrize("order", GELU_ORDERS)
def test_gelu_with_its_bias(order):
    model = gelu_model(GELU_ORDERS[order], "x = Add(w, bias)", bias=random(8))
    feed = {"w": 3 * random(2, 5, 8, seed=3)}
    expected = run(model, **feed)
    assert ops(applied(model, Gelu(), "gelu")) == ["Add", "Gelu"]
    assert ops(applied(model, Gelu(), "bias_gelu")) == ["BiasGelu"]
    for form in Gelu().forms:
        assert same_outputs([expected], [run(applied(model, Gelu(), form), **feed)])


@pytest.mark.parametrize(
    "body",
    [
        "d = Div(x, one) e = Erf(d) a = Add(e, one) h = Mul(half, a) out = Mul(x, h)",
        "d = Div(x, r) e = Erf(d) a = Add(e, half) h = Mul(half, a) out = Mul(x, h)",
        "d = Div(x, r) e = Erf(d) a = Add(e, one) h = Mul(one, a) out = Mul(x, h)",
        'out = Gelu <approximate = "tanh"> (x)',
        "d = Div(x, r) out = Erf(d)",
    ],
)
def test_what_is_not_the_exact_gelu_is_left_alone(body):
    assert Gelu().sites(gelu_model(body)) == []


# ---- int8 linears


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


def dynamic_model():
    values, scale = quantised_weight(16, 6)
    text = (
        "g (float[b,s,16] x) => (float[b,s,6] out) { q, xs, xz = DynamicQuantizeLinear(x) "
        "i = MatMulInteger(q, w, xz, z) f = Cast <to = 1> (i) t = Mul(xs, ws) m = Mul(f, t) out = Add(m, b) }"
    )
    return model_of(text, {"w": values, "ws": scale, "z": np.zeros(6, np.int8), "b": random(6, seed=4)})


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("per_channel", [True, False])
def test_static_int8_linear(bias, per_channel):
    model = static_model(bias=bias, per_channel=per_channel)
    check_forms(model, IntegerLinear(), 1, x=random(2, 3, 16, seed=5))
    assert ops(applied(model, IntegerLinear(), "integer_to_float")) == [
        "QuantizeLinear",
        "MatMulIntegerToFloat",
    ]


def test_dynamic_int8_linear():
    model = dynamic_model()
    check_forms(model, IntegerLinear(), 1, x=random(2, 3, 16, seed=5))
    twin = applied(model, IntegerLinear(), "integer_to_float")
    assert ops(twin) == ["DynamicQuantizeLinear", "MatMulIntegerToFloat"]


def test_float_linear_and_wrong_axis_are_no_int8_linears():
    text = "g (float[b,16] x) => (float[b,6] out) { out = MatMul(x, w) }"
    assert IntegerLinear().sites(model_of(text, {"w": random(16, 6)})) == []
    values, _ = quantised_weight(16, 6)
    text = (
        "g (float[b,16] x) => (float[b,6] out) { q = QuantizeLinear(x, xs, xz) "
        "d = DequantizeLinear(q, xs, xz) v = DequantizeLinear <axis = 0> (w, s, z) out = MatMul(d, v) }"
    )
    weights = {"xs": np.float32(0.03), "xz": np.uint8(9), "w": values}
    weights |= {"s": np.abs(random(16)) + 1, "z": np.zeros(16, np.int8)}
    assert IntegerLinear().sites(model_of(text, weights)) == []


# ---- rows of an int8 table


def table_model(zero):
    text = (
        "g (int64[b,s] ids) => (float[b,s,6] out) "
        "{ q = Gather(t, ids) out = DequantizeLinear <axis = -1> (q, scale, zero) }"
    )
    weights = {"t": np.random.default_rng(0).integers(-128, 128, (9, 6), np.int8)}
    return model_of(text, weights | {"scale": np.abs(random(6)), "zero": np.full(6, zero, np.int8)})


@pytest.mark.parametrize("zero", [0, -7])
def test_rows_of_an_int8_table(zero):
    model = table_model(zero)
    ids = np.array([[0, 8, 3]])
    check_forms(model, DequantisedRows(), 1, ids=ids)
    twin = applied(model, DequantisedRows(), "scaled")
    assert np.array_equal(run(model, ids=ids)["out"], run(twin, ids=ids)["out"])
    assert ops(twin) == ["Gather", "Cast", *(["Sub"] if zero else []), "Mul"]


def test_one_scale_for_a_row_or_an_activation_is_no_int8_table():
    model = table_model(0)
    model.graph.node(1).attributes["axis"] = ir.AttrInt64("axis", 1)
    assert DequantisedRows().sites(model) == []
    assert DequantisedRows().sites(static_model()) == []


# ---- linears of one input


@pytest.mark.parametrize("bias", [True, False])
def test_packed_int8_linears(bias):
    model = applied(static_model(count=3, bias=bias), IntegerLinear(), "integer_to_float")
    check_forms(model, Packed(), 1, x=random(2, 3, 16, seed=5))
    twin = applied(model, Packed(), "packed")
    assert ops(twin) == ["QuantizeLinear", "MatMulIntegerToFloat", "Split"]
    assert [str(v.shape) for v in twin.graph.node(2).outputs] == ["[b,s,6]", "[b,s,7]", "[b,s,8]"]
    assert twin.graph.node(1).outputs[0].shape is not None
    assert twin.weight_bytes <= model.weight_bytes + 64


def test_packed_float_linears_one_without_bias():
    text = (
        "g (float[b,s,16] x) => (float[b,s,4] q, float[b,s,5] k) "
        "{ m = MatMul(x, w) q = Add(m, c) k = MatMul(x, v) }"
    )
    model = model_of(text, {"w": random(16, 4), "v": random(16, 5, seed=1), "c": random(4, seed=2)})
    check_forms(model, Packed(), 1, x=random(2, 3, 16))
    assert ops(applied(model, Packed(), "packed")) == ["MatMul", "Add", "Split"]


def test_linears_of_different_inputs_are_not_packed():
    text = (
        "g (float[b,16] x, float[b,16] y) => (float[b,4] p, float[b,4] q) "
        "{ p = MatMul(x, w) q = MatMul(y, w) }"
    )
    assert Packed().sites(model_of(text, {"w": random(16, 4)})) == []


@pytest.mark.parametrize("steps", [["integer"], ["integer", "packed"]])
def test_int8_weights_that_are_expressions_stay_expressions(steps, tmp_path):
    body, weights = ["q = QuantizeLinear(x, xs, xz)"], {"xs": np.float32(0.03), "xz": np.uint8(120)}
    for i in range(2):
        weights |= {f"l{i}": random(16, 2, seed=i), f"r{i}": random(2, 24, seed=3 + i)}
        weights |= {f"s{i}": np.full(24, 0.05, np.float32), f"z{i}": np.zeros(24, np.int8)}
        body += [f"e{i} = MatMul(l{i}, r{i})", f"w{i} = QuantizeLinear <axis = 1> (e{i}, s{i}, z{i})"]
        body += [f"v{i} = DequantizeLinear <axis = 1> (w{i}, s{i}, z{i})"]
        body += [f"d{i} = DequantizeLinear(q, xs, xz)", f"out{i} = MatMul(d{i}, v{i})"]
    text = f"g (float[b,s,16] x) => (float[b,s,24] out0, float[b,s,24] out1) {{ {' '.join(body)} }}"
    model = model_of(text, weights)
    expected = run(model, x=random(2, 3, 16))
    for step in steps:
        family, form = {"integer": (IntegerLinear(), "integer_to_float"), "packed": (Packed(), "packed")}[
            step
        ]
        assert family.sites(model)
        model = applied(model, family, form)
    assert same_outputs([expected], [run(model, x=random(2, 3, 16))])
    assert sorted(v.name for v in model.initializers() if v.name[0] in "lr") == ["l0", "l1", "r0", "r1"]
    assert set(optimised_ops(model, tmp_path)) <= {"QuantizeLinear", "MatMulIntegerToFloat", "Split"}


# ---- Kronecker weights


def test_kronecker_products_are_the_expanded_weight():
    model = model_of(
        "g (float[b,s,12] x) => (float[b,s,20] out) { out = MatMul(x, w) }", {"w": random(12, 20)}
    )
    split = Split(3, 5, 4, 4)
    factors = Factors(split, random(split.n1 * split.m1, 2), random(2, split.n2 * split.m2, seed=1))
    with Rewriter(model, Context()) as rw:
        node = model.graph.node(0)
        rw.set_input(node, 1, write_expression(rw, factors, "w", ir.DataType.FLOAT, node))
    check_forms(model, Kronecker(), 1, x=random(2, 3, 12))


def factored_table(split, rank=2):
    model = model_of(
        "g (int64[b,s] ids) => (float[b,s,12] out) { out = Gather(t, ids) }", {"t": random(30, 12)}
    )
    factors = Factors(split, random(split.n1 * split.m1, rank), random(rank, split.n2 * split.m2, seed=1))
    with Rewriter(model, Context()) as rw:
        node = model.graph.node(0)
        rw.set_input(node, 0, write_expression(rw, factors, "t", ir.DataType.FLOAT, node))
    return model


@pytest.mark.parametrize("split", [Split(30, 4, 1, 3), Split(10, 2, 3, 6)])
def test_rows_of_factors_are_rows_of_the_expanded_table(split):
    ids = np.array([[0, 29, 7], [3, 3, 15]])
    check_forms(factored_table(split), KroneckerTable(), 1, ids=ids)


def test_factors_of_other_sizes_are_other_sites():
    signatures = {
        KroneckerTable().sites(factored_table(split, rank))[0].signature()
        for split in (Split(30, 4, 1, 3), Split(30, 2, 1, 6))
        for rank in (1, 2)
    }
    assert len(signatures) == 4


def test_dense_weights_are_no_kronecker_sites():
    model = model_of("g (float[b,12] x) => (float[b,20] out) { out = MatMul(x, w) }", {"w": random(12, 20)})
    assert Kronecker().sites(model) == []


# ---- attention

ATTENTION = """
g (float[b,s,8] q, float[b,s,8] k, float[b,s,8] v, float[b,1,{rows},s] mask) => (float[b,s,8] out) {{
  qr = Reshape(q, heads)  qt = Transpose <perm = [0, 2, 1, 3]> (qr)  qs = Mul(qt, scale)
  kr = Reshape(k, heads)  kt = Transpose <perm = [0, 2, {key}]> (kr)  ks = Mul(scale, kt)
  vr = Reshape(v, heads)  vt = Transpose <perm = [0, 2, 1, 3]> (vr)
  p = MatMul(qs, ks)  a = Add(p, mask)  soft = Softmax <axis = {axis}> (a)  {guard}
  c = MatMul(soft{guarded}, vt)  t = Transpose <perm = [0, 2, 1, 3]> (c)  out = Reshape(t, whole)
}}
"""


def attention_model(rows="1", key="3, 1", axis=-1, guard="", mask="b,1,{rows},s"):
    text = ATTENTION.replace("b,1,{rows},s", mask)
    text = text.format(rows=rows, key=key, axis=axis, guard=guard, guarded="ed" if guard else "")
    weights = {"heads": np.array([0, 0, 2, 4]), "whole": np.array([0, 0, 8]), "scale": np.float32(0.6)}
    return model_of(text, weights)


def attention_feed(rows=1):
    mask = np.zeros((2, 1, rows, 5), np.float32)
    mask[0, :, :, 3:] = -1e4
    return {name: random(2, 5, 8, seed=i) for i, name in enumerate("qkv")} | {"mask": mask}


BOTH = FusedAttention(operator=True)


@pytest.mark.parametrize("rows", [1, 5])
def test_attention_as_one_node(rows):
    model = attention_model(rows="1" if rows == 1 else "s")
    check_forms(model, BOTH, 1, **attention_feed(rows))
    for form in BOTH.forms:
        assert "Softmax" not in ops(applied(model, BOTH, form)), form


@pytest.mark.parametrize("mask", ["b,2,s,s", "1,1,s,s", "1,2,1,s", "b,1,1,s"])
def test_attention_with_masks_of_every_kind(mask):
    model = attention_model(mask=mask)
    sizes = [{"b": 3, "s": 5, "1": 1, "2": 2}[d] for d in mask.split(",")]
    values = np.where(random(*sizes, seed=7) > 0.5, -1e4, 0).astype(np.float32)
    feed = {name: random(3, 5, 8, seed=i) for i, name in enumerate("qkv")} | {"mask": values}
    check_forms(model, BOTH, 1, **feed)


def test_attention_over_another_sequence():
    text = ATTENTION.format(rows="1", key="3, 1", axis=-1, guard="", guarded="")
    text = (
        text.replace("[b,s,8] k", "[b,t,8] k")
        .replace("[b,s,8] v", "[b,t,8] v")
        .replace("1,s] mask", "1,t] mask")
    )
    weights = {"heads": np.array([0, 0, 2, 4]), "whole": np.array([0, 0, 8]), "scale": np.float32(0.6)}
    feed = {"q": random(2, 3, 8), "k": random(2, 7, 8, seed=1), "v": random(2, 7, 8, seed=2)}
    check_forms(model_of(text, weights), BOTH, 1, **feed, mask=np.zeros((2, 1, 1, 7), np.float32))


def test_attention_as_an_operator_raises_the_opset_and_only_then():
    assert set(FusedAttention().forms) == {"multi_head"}
    model = attention_model()
    assert applied(model, BOTH, "multi_head").opset == 20
    twin = applied(model, BOTH, "operator")
    assert (twin.opset, twin.ir.ir_version) == (23, 11)
    assert "Attention" in ops(twin)
    onnx.checker.check_model(ir.to_proto(twin.ir))


@pytest.mark.parametrize("form", list(BOTH.forms))
def test_attention_as_one_node_at_many_lengths(form):
    model = attention_model()
    twin = applied(model, BOTH, form)
    with Runner(model) as before, Runner(twin) as after:
        for length in (1, 2, 3, 31, 32, 33, 64):
            feed = {name: random(2, length, 8, seed=i) for i, name in enumerate("qkv")}
            feed["mask"] = np.where(random(2, 1, 1, length, seed=7) > 1, -1e4, 0).astype(np.float32)
            assert same_outputs([before(feed)], [after(feed)]), length


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize("hidden", [np.finfo(np.float32).min, -1e30])
def test_a_query_that_sees_no_key_has_the_mean_of_the_values(rows, hidden):
    feed = attention_feed(rows)
    feed["mask"][1] = hidden
    feed["mask"][0, :, -1] = hidden
    check_forms(attention_model(rows="1" if rows == 1 else "s"), BOTH, 1, **feed)


@pytest.mark.parametrize("opset", [13, 14, 17])
def test_attention_of_an_older_opset(opset):
    text = ATTENTION.format(rows="1", key="3, 1", axis=-1, guard="", guarded="")
    weights = {"heads": np.array([0, 0, 2, 4]), "whole": np.array([0, 0, 8]), "scale": np.float32(0.6)}
    check_forms(model_of(text, weights, opset), BOTH, 1, **attention_feed())


@pytest.mark.parametrize("alone", ["q", "kv", "qkv"])
def test_a_batch_of_one_that_is_repeated_is_not_matched(alone):
    """The products repeat it: queries that are weights, one mask for every sample."""
    text = ATTENTION.format(rows="1", key="3, 1", axis=-1, guard="", guarded="")
    for name in alone:
        text = text.replace(f"float[b,s,8] {name},", f"float[1,s,8] {name},")
    weights = {"heads": np.array([0, 0, 2, 4]), "whole": np.array([0, 0, 8]), "scale": np.float32(0.6)}
    assert BOTH.sites(model_of(text, weights)) == []
    text = text.replace("[b,", "[1,")
    assert len(BOTH.sites(model_of(text, weights))) == 1


TWO_ATTENTIONS = """
g (float[b,s,8] q, float[b,r,8] p, float[b,t,8] k, float[b,1,1,t] mask)
  => (float[b,s,8] xo, float[b,r,8] yo) {{
  {0}  {1}
}}
"""
ONE_OF_TWO = """
  {n}qr = Reshape({q}, heads)  {n}qt = Transpose <perm = [0, 2, 1, 3]> ({n}qr)
  {n}kr = Reshape(k, heads)  {n}kt = Transpose <perm = [0, 2, 3, 1]> ({n}kr)
  {n}vr = Reshape(k, heads)  {n}vt = Transpose <perm = [0, 2, 1, 3]> ({n}vr)
  {n}p = MatMul({n}qt, {n}kt)  {n}a = Add({n}p, mask)  {n}soft = Softmax <axis = -1> ({n}a)
  {n}c = MatMul({n}soft, {n}vt)  {n}t = Transpose <perm = [0, 2, 1, 3]> ({n}c)
  {n}o = Reshape({n}t, whole)
"""


def test_attentions_of_two_lengths_share_a_mask_and_not_its_rows():
    text = TWO_ATTENTIONS.format(ONE_OF_TWO.format(n="x", q="q"), ONE_OF_TWO.format(n="y", q="p"))
    weights = {"heads": np.array([0, 0, 2, 4]), "whole": np.array([0, 0, 8])}
    model = model_of(text, weights)
    mask = np.where(random(2, 1, 1, 4, seed=7) > 0, -1e4, 0).astype(np.float32)
    feed = {"q": random(2, 3, 8), "p": random(2, 5, 8, seed=1), "k": random(2, 4, 8, seed=2), "mask": mask}
    check_forms(model, BOTH, 2, **feed)


@pytest.mark.parametrize("rows", [1, 5])
@pytest.mark.parametrize(
    "added", ["b = Add(p, bias)  a = Add(b, mask)", "b = Add(mask, p)  a = Add(bias, b)"]
)
def test_multi_head_attention_with_a_bias_of_positions_and_a_mask(rows, added):
    text = ATTENTION.format(rows="1" if rows == 1 else "s", key="3, 1", axis=-1, guard="", guarded="")
    text = text.replace("a = Add(p, mask)", added).replace(" mask) =>", " mask, float[1,2,s,s] bias) =>")
    weights = {"heads": np.array([0, 0, 2, 4]), "whole": np.array([0, 0, 8]), "scale": np.float32(0.6)}
    model = model_of(text, weights)
    check_forms(model, FusedAttention(), 1, **attention_feed(rows), bias=random(1, 2, 5, 5, seed=9))
    assert "Softmax" not in ops(applied(model, FusedAttention(), "multi_head"))


def test_a_guard_after_the_softmax_or_another_axis_is_not_matched():
    guarded = "n = IsNaN(soft) zero = Sub(soft, soft) softed = Where(n, zero, soft)"
    assert FusedAttention().sites(attention_model(guard=guarded)) == []
    assert FusedAttention().sites(attention_model(axis=2)) == []


# ---- choice


def test_a_form_that_computes_something_else_is_not_taken():
    class Wrong(Residual):
        @property
        def forms(self):
            def as_maximum(rw, site):
                add = site.nodes[0]
                rw.replace(add.outputs[0], rw.node("Max", *add.inputs, before=add))

            return {"max": as_maximum, **super().forms}

    model = model_of(RESIDUAL.format(op="Add"), norm_weights())
    times, refused = measure_forms(model, Wrong(), [{"x": random(2, 3, 8), "y": random(2, 3, 8, seed=2)}])
    assert set(times) == {UNCHANGED, "sum"}
    assert refused == {"max": "it gives other outputs"}


def test_a_form_that_the_runtime_refuses_is_not_taken():
    class Refused(Residual):
        @property
        def forms(self):
            def as_nothing_known(rw, site):
                add = site.nodes[0]
                rw.replace(add.outputs[0], rw.node("NoSuchOperator", *add.inputs, before=add))

            return {"unknown": as_nothing_known}

    model = model_of(RESIDUAL.format(op="Add"), norm_weights())
    times, refused = measure_forms(model, Refused(), [{"x": random(2, 3, 8), "y": random(2, 3, 8, seed=2)}])
    assert set(times) == {UNCHANGED}
    assert refused["unknown"].startswith("ONNX Runtime refuses the model")


def test_a_mistake_in_a_form_is_an_error_and_no_reason_to_leave_it_out():
    class Broken(Residual):
        @property
        def forms(self):
            return {"broken": lambda rw, site: site.nothing}

    model = model_of(RESIDUAL.format(op="Add"), norm_weights())
    with pytest.raises(AttributeError, match="nothing"):
        measure_forms(model, Broken(), [{"x": random(2, 3, 8), "y": random(2, 3, 8, seed=2)}])


def test_a_refused_form_is_recorded_with_its_reason_also_where_times_are_kept(tmp_path):
    class Half(Residual):
        @property
        def forms(self):
            def as_nothing_known(rw, site):
                rw.replace(site.nodes[0].outputs[0], rw.node("NoSuchOperator", before=site.nodes[0]))

            return {"unknown": as_nothing_known, **super().forms}

    model = model_of(RESIDUAL.format(op="Add"), norm_weights())
    cache = MeasurementCache(tmp_path)
    records = []
    for _ in range(2):
        (choice,) = choose_forms(model.clone(), [Half()], [(2, 3)], Context(), cache=cache)
        assert choice.refused["unknown"].startswith("ONNX Runtime refuses the model")
        records.append(choice.record)
    assert records[0] == records[1]


def rounds_of(times, taken=None):
    """Turns that run nothing and give ``times``; they are counted in ``taken``."""

    def turns(runs, seconds):
        for number in range(len(times[UNCHANGED])):
            if taken is not None:
                taken.append(number)
            yield {name: times[name][number] for name in runs}

    return turns


@pytest.mark.parametrize(
    ("own", "rounds"),
    [
        ([0.5] * 7, FORM_LEAST_ROUNDS),
        ([2.0] * 7, FORM_LEAST_ROUNDS),
        ([0.8, 1.3, 1.3, 0.8, 1.3, 0.8, 1.3], FORM_ROUNDS),
    ],
)
def test_a_clear_choice_takes_few_rounds(own, rounds, monkeypatch):
    taken = []
    times = {UNCHANGED: [1.0] * 7, "sum": own}
    monkeypatch.setattr("graphcompress.targets.common.form_choice.turns", rounds_of(times, taken))
    model = model_of(RESIDUAL.format(op="Add"), norm_weights())
    measure_forms(model, Residual(), [{"x": random(2, 3, 8), "y": random(2, 3, 8, seed=2)}])
    assert len(taken) == rounds


def test_rounds_slowed_by_other_work_do_not_count_against_a_form(monkeypatch):
    rounds = {UNCHANGED: [1.0] * 10, "sum": [0.8] * 3 + [5.0] * 7}
    monkeypatch.setattr("graphcompress.targets.common.form_choice.turns", rounds_of(rounds))
    model = model_of(RESIDUAL.format(op="Add"), norm_weights())
    feeds = [{"x": random(2, 3, 8), "y": random(2, 3, 8, seed=2)}]
    assert fastest(measure_forms(model, Residual(), feeds)[0], UNCHANGED) == "sum"
    rounds["sum"] = [1.5] * 10
    assert fastest(measure_forms(model, Residual(), feeds)[0], "sum") == UNCHANGED


def test_outputs_that_are_not_a_number_are_different():
    row = np.array([1.0, 1.0], np.float32)
    assert not same_outputs([{"y": row}], [{"y": np.array([1.0, np.nan], np.float32)}])
    assert same_outputs([{"y": row}], [{"y": row.copy()}])


def test_signature_ignores_weights_and_names_but_not_sizes_and_attributes():
    def signature(model):
        return IntegerLinear().sites(model)[0].signature()

    assert signature(static_model()) == signature(static_model())
    assert signature(static_model()) != signature(static_model(columns=7))
    assert signature(static_model()) != signature(static_model(bias=False))
    first, second = (site.signature() for site in IntegerLinear().sites(static_model(columns=6, count=2)))
    assert first != second


# ---- legalise

OPERATOR = """
g (float[b,2,s,4] q, float[b,2,s,4] k, float[b,2,s,4] v, {kind}[b,1,s,s] mask) => (float[b,2,s,4] out) {{
  out = Attention <{attributes}> (q, k, v, mask)
}}
"""


def operator_model(kind="bool", attributes="scale = 0.3"):
    return model_of(OPERATOR.format(kind=kind, attributes=attributes), opset=23)


@pytest.mark.parametrize("kind", ["bool", "float"])
def test_attention_operator_is_written_out(kind):
    model = operator_model(kind)
    feed = {name: random(2, 2, 5, 4, seed=i) for i, name in enumerate("qkv")}
    mask = np.tril(np.ones((2, 1, 5, 5), bool))
    feed["mask"] = mask if kind == "bool" else np.where(mask, 0, -1e4).astype(np.float32)
    expected = run(model, **feed)
    assert legalise(model, Context()) is None
    assert "Attention" not in ops(model)
    assert model.opset == 21
    assert same_outputs([expected], [run(model, **feed)])


def test_attention_operator_over_three_dimensions():
    text = (
        "g (float[b,s,8] q, float[b,s,8] k, float[b,s,8] v) => (float[b,s,8] out) "
        "{ out = Attention <q_num_heads = 2, kv_num_heads = 2> (q, k, v) }"
    )
    model = model_of(text, opset=23)
    feed = {name: random(2, 5, 8, seed=i) for i, name in enumerate("qkv")}
    expected = run(model, **feed)
    assert legalise(model, Context()) is None
    assert same_outputs([expected], [run(model, **feed)])


def test_what_needs_a_newer_opset_keeps_it_and_says_why():
    model = operator_model("float", "is_causal = 1")
    reason = legalise(model, Context())
    assert model.opset == 23
    assert "Attention" in ops(model)
    assert reason is not None
    assert reason.startswith("Attention")


def test_older_opsets_stay():
    model = model_of("g (float[b,8] x) => (float[b,8] y) { y = Relu(x) }", opset=17)
    assert legalise(model, Context()) is None
    assert model.opset == 17


# ---- symmetric activations


QDQ = """g (float[n, 4] x) => (float[n, 4] y)
    <float s = {0.05}, int8 z = {0}, float ws = {0.01}, int8 wz = {0}>
    {
        q = QuantizeLinear(x, s, z)
        d = DequantizeLinear(q, s, z)
        v = DequantizeLinear(w, ws, wz)
        y = MatMul(d, v)
    }"""


@pytest.mark.parametrize(
    ("largest", "saturates", "shifted"), [(60, True, 1), (100, True, 0), (100, False, 1)]
)
def test_symmetric_activations_become_unsigned_where_products_have_room(largest, saturates, shifted):
    weight = np.full((4, 4), largest, np.int8)
    weight[:, 1] = -largest
    model = model_of(QDQ, {"w": weight})
    x = random(3, 4)
    twin = model.clone()
    assert unsigned_activations(twin, Context(), saturates=saturates) == shifted
    zero = next(node for node in twin.graph if node.op_type == "QuantizeLinear").inputs[2].const_value
    assert int(zero.numpy()) == 128 * shifted
    np.testing.assert_array_equal(run(twin, x=x)["y"], run(model, x=x)["y"])


def test_symmetric_activations_that_something_else_reads_stay():
    text = QDQ.replace("y = MatMul(d, v)", "m = MatMul(d, v)\n c = Cast<to=1>(q)\n y = Add(m, c)")
    model = model_of(text, {"w": np.ones((4, 4), np.int8)})
    assert unsigned_activations(model, Context(), saturates=False) == 0
