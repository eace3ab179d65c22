"""Linears of one input as one product."""

import numpy as np
import pytest
from operator_forms import applied, check_forms, model_of, ops, optimised_ops, random, run, static_model

from graphcompress.targets.common.form_choice import same_outputs
from graphcompress.targets.common.integer_linear import IntegerLinear
from graphcompress.targets.cpu.packed_linears import Packed


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
