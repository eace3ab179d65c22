"""Activations as exporters spell them out: what is found is what ONNX Runtime computes."""

import math

import numpy as np
import pytest
import texts
from scipy.special import erf

from graphcompress.analysis.activations import activations
from graphcompress.graph.runner import Runner

FUNCTIONS = {
    "gelu": lambda x: x * (1 + erf(x / math.sqrt(2))) / 2,
    "tanh_gelu": lambda x: x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3))) / 2,
    "silu": lambda x: x / (1 + np.exp(-x)),
}
CURVES = {
    "gelu": ("d = Div(x, root) c = Erf(d)", "d = Mul(inverse, x) c = Erf(d)"),
    "tanh_gelu": (
        "p = Pow(x, three) m = Mul(small, p) s = Add(x, m) r = Mul(s, outer) c = Tanh(r)",
        "p = Pow(x, three) m = Mul(p, small) s = Add(m, x) r = Mul(outer, s) c = Tanh(r)",
    ),
}
PRODUCTS = (
    "h = Mul(a, half) y = Mul(x, h)",
    "h = Mul(a, x) y = Mul(half, h)",
    "h = Mul(x, half) y = Mul(h, a)",
    "h = Div(x, two) y = Mul(a, h)",
    "h = Mul(x, a) y = Div(h, two)",
)
SPELT = [
    *((name, f"{c} a = Add(c, one) {rest}") for name in CURVES for c in CURVES[name] for rest in PRODUCTS),
    ("silu", "s = Sigmoid(x) y = Mul(x, s)"),
    ("silu", "s = Sigmoid(x) y = Mul(s, x)"),
    ("gelu", "y = Gelu(x)"),
    ("tanh_gelu", 'y = Gelu <approximate = "tanh"> (x)'),
]
NUMBERS = {
    "root": math.sqrt(2),
    "inverse": math.sqrt(0.5),
    "three": 3,
    "small": 0.044715,
    "outer": math.sqrt(2 / math.pi),
    "one": 1,
    "half": 0.5,
    "two": 2,
}


def model_of(body):
    constants = ", ".join(f"float {name} = {{{number:.9g}}}" for name, number in NUMBERS.items())
    return texts.model_of(f"g (float[b, 8] x) => (float[b, 8] y) <{constants}> {{ {body} }}", opset=20)


@pytest.mark.parametrize(("name", "body"), SPELT)
def test_what_is_found_is_what_is_computed(name, body):
    model = model_of(body)
    (found,) = activations(model)
    assert found.function == name
    assert found.nodes == tuple(node for node in model.graph)
    x = np.linspace(-6, 6, 80, dtype=np.float32).reshape(10, 8)
    with Runner(model) as run:
        assert np.allclose(run({"x": x})["y"], FUNCTIONS[name](x), rtol=1e-5, atol=2e-6)


def test_half_of_x_that_others_read_too_is_no_part_of_it():
    body = "h = Mul(x, half) d = Div(x, root) c = Erf(d) a = Add(c, one) g = Mul(h, a) y = Add(g, h)"
    (found,) = activations(model_of(body))
    assert [node.op_type for node in found.nodes] == ["Div", "Erf", "Add", "Mul"]


@pytest.mark.parametrize(
    "body",
    [
        "d = Div(x, two) c = Erf(d) a = Add(c, one) h = Mul(a, half) y = Mul(x, h)",
        "d = Div(x, root) c = Erf(d) a = Add(c, half) h = Mul(a, half) y = Mul(x, h)",
        "d = Div(x, root) c = Erf(d) a = Add(c, one) h = Mul(a, two) y = Mul(x, h)",
        "d = Div(x, root) c = Erf(d) a = Add(c, one) h = Mul(a, half) y = Mul(d, h)",
        "d = Div(x, root) c = Erf(d) a = Add(c, one) h = Mul(a, half) g = Mul(x, h) y = Add(g, a)",
        "s = Sigmoid(x) t = Neg(x) y = Mul(t, s)",
        "y = Tanh(x)",
    ],
)
def test_others_are_left_alone(body):
    assert activations(model_of(body)) == []
