"""int8 on experts: a scale for each expert and channel, integer products of a stack."""

from __future__ import annotations

import numpy as np
import pytest
from experts_models import DENSE, EXPERTS, HIDDEN, LOOKED_UP, WIDTH, answers, mixture, rows, samples

from graphcompress.analysis.experts import all_experts
from graphcompress.graph.match import array_of
from graphcompress.numerics.metrics import sqnr_db
from graphcompress.numerics.quantise import quantise_weight
from graphcompress.passes.kron.kron import Kron
from graphcompress.passes.quantize.int8 import Int8
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.context import Context
from graphcompress.plugin.schemes import INT8, integer_products

STATIC_ALONE = Capabilities(integer_products(INT8))
FEEDS = (rows(1, 1), rows(3, 7, seed=1), rows(2, 33, seed=2))


@pytest.mark.parametrize("form", [DENSE, LOOKED_UP])
@pytest.mark.parametrize("calibrated", [False, True])
def test_experts_multiply_integers(form, calibrated) -> None:
    model = mixture(form)
    stacks = {each.name: each.stack() for each in all_experts(model)}
    before = [answers(model, feed) for feed in FEEDS]
    (record,) = Pipeline([Int8()]).run(model, Context(samples=samples() if calibrated else None))
    assert {item.name for item in record.touched} == set(stacks)
    assert len(stacks) == 4
    assert sum(node.op_type == "MatMulInteger" for node in model.graph) == 4
    assert not all_experts(model)
    for feed, expected in zip(FEEDS, before, strict=True):
        assert sqnr_db(expected, answers(model, feed)) > 30
    stored = {value.name: array_of(value) for value in model.initializers()}
    for name, stack in stacks.items():
        for expert, matrix in enumerate(stack):
            alone = quantise_weight(matrix, "8bit")
            np.testing.assert_array_equal(stored[f"{name}.quantised"][expert], alone.values)
            np.testing.assert_array_equal(stored[f"{name}.scale"][expert, 0], alone.scale)
    assert model.weight_bytes < 1.4 * EXPERTS * 2 * (WIDTH * HIDDEN * (2 if form is DENSE else 3))


@pytest.mark.parametrize("form", [DENSE, LOOKED_UP])
def test_where_no_stack_is_multiplied_it_is_stored_in_8_bits(form) -> None:
    model = mixture(form)
    before = [answers(model, feed) for feed in FEEDS]
    (record,) = Pipeline([Int8()]).run(model, Context(samples=samples(), capabilities=STATIC_ALONE))
    assert {item.detail for item in record.touched} == {
        "stored in 8 bits; the target has no integer product of a stack"
    }
    assert not any(node.op_type == "MatMulInteger" for node in model.graph)
    for feed, expected in zip(FEEDS, before, strict=True):
        assert sqnr_db(expected, answers(model, feed)) > 30


def test_integer_products_of_experts_are_those_of_fake_quantised_floats() -> None:
    integers, floats = mixture(DENSE), mixture(DENSE)
    Int8(max_model_error=None).run(integers, Context(samples=samples()))
    experts = all_experts(floats)[0]
    stored = {value.name: array_of(value) for value in integers.initializers()}
    x = rows(2, 5)["x"]
    scale, zero = stored["wide0.scale"], stored["wide0.zero_point"].astype(np.float64)
    rounded = (np.clip(np.rint(x / scale) + zero, 0, 255) - zero) * scale
    expected = np.einsum("bsi,eio->beso", rounded, experts.stack())
    quantised = stored["up_weight0.quantised"] * stored["up_weight0.scale"].astype(np.float64)
    exact = np.einsum("bsi,eio->beso", rounded, quantised)
    from graphcompress.graph.runner import Runner

    product = next(node for node in integers.graph if node.op_type == "Relu").inputs[0]
    with Runner(integers, [product], optimize=False) as runner:
        (actual,) = runner({"x": x}).values()
    np.testing.assert_allclose(actual, exact, rtol=1e-4, atol=1e-4 * np.abs(exact).max())
    assert sqnr_db(expected, actual) > 30


@pytest.mark.parametrize("form", [DENSE, LOOKED_UP])
def test_factored_experts_stay_factors(form) -> None:
    model = mixture(form)
    Kron(ratio=0.5).run(model, Context())
    before = [answers(model, feed) for feed in FEEDS]
    (record,) = Pipeline([Int8()]).run(model, Context(samples=samples()))
    assert {item.detail for item in record.touched if "weight" in item.name} == {"stays an expression"}
    for feed, expected in zip(FEEDS, before, strict=True):
        assert sqnr_db(expected, answers(model, feed)) > 25
