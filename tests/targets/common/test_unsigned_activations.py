"""Symmetric activations become unsigned where products have room."""

import numpy as np
import pytest
from operator_forms import model_of, random, run

from graphcompress.plugin.context import Context
from graphcompress.targets.common.unsigned_activations import unsigned_activations

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
