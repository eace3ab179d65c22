"""The sum before a LayerNormalization as an operator that the runtime does not fuse."""

import pytest
from operator_forms import RESIDUAL, applied, check_forms, model_of, norm_weights, ops, optimised_ops, random

from graphcompress.targets.cpu.residual import Residual


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
