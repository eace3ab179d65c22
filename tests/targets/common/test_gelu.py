"""GELU as one node, in every spelling, and only where it is the exact one."""

import numpy as np
import pytest
from operator_forms import applied, model_of, ops, random, run

from graphcompress.targets.common.form_choice import same_outputs
from graphcompress.targets.common.gelu import Gelu

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
