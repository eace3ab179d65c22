"""Rows of an int8 table are dequantised after they are looked up."""

import numpy as np
import onnx_ir as ir
import pytest
from operator_forms import applied, check_forms, model_of, ops, random, run, static_model

from graphcompress.targets.cpu.int8_tables import DequantisedRows


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
