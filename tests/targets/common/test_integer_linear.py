"""Linears of int8 weights as integer products."""

import numpy as np
import pytest
from operator_forms import applied, check_forms, model_of, ops, quantised_weight, random, static_model

from graphcompress.targets.common.integer_linear import IntegerLinear


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
