"""Products with Kronecker factors and rows of factored tables."""

import numpy as np
import onnx_ir as ir
import pytest
from operator_forms import check_forms, model_of, random

from graphcompress.numerics.kronecker import Factors, Split
from graphcompress.plugin.context import Context
from graphcompress.rewrite.kronecker import write_expression
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.cpu.kronecker import Kronecker, KroneckerTable


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
