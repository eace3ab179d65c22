"""Kronecker algebra against its definitions: dense products, tail energies, Eq. 7."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
from hypothesis import given
from strategies import kronecker_problems

from graphcompress.numerics import kronecker
from graphcompress.numerics.kronecker import (
    Factors,
    Split,
    energies,
    nearest,
    plan,
    signed,
    splits,
)


def by_definition(factors: Factors) -> np.ndarray:
    s = factors.split
    terms = (
        np.kron(factors.a[:, r].reshape(s.n1, s.m1), factors.b[r].reshape(s.n2, s.m2))
        for r in range(factors.rank)
    )
    return np.sum(list(terms), axis=0)


@given(kronecker_problems())
def test_dense_is_the_sum_of_kronecker_products(problem):
    weight, _, split, rank = problem
    factors = nearest(weight, split, rank)
    np.testing.assert_allclose(factors.dense(), by_definition(factors), atol=1e-12)
    assert factors.parameters == factors.a.size + factors.b.size


@given(kronecker_problems())
def test_full_rank_is_the_weight(problem):
    weight, _, split, _ = problem
    np.testing.assert_allclose(nearest(weight, split, split.full_rank).dense(), weight, atol=1e-10)


@given(kronecker_problems())
def test_the_squared_residual_is_the_tail_energy(problem):
    weight, _, split, rank = problem
    residual = np.sum((weight - nearest(weight, split, rank).dense()) ** 2)
    tail = np.sum(energies(weight, split)[rank:])
    assert residual == pytest.approx(tail, rel=1e-5, abs=1e-9 * np.sum(weight**2))


def test_a_kronecker_product_is_found_again():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(6, 4)), rng.normal(size=(5, 3))
    factors = nearest(np.kron(a, b), Split(6, 4, 5, 3), 1)
    np.testing.assert_allclose(factors.dense(), np.kron(a, b), atol=1e-12)
    assert np.linalg.norm(factors.a) == pytest.approx(np.linalg.norm(factors.b))


def test_partial_and_dense_eigenvectors_agree(monkeypatch):
    weight = np.random.default_rng(0).normal(size=(64, 64))
    split = Split(8, 8, 8, 8)
    dense = nearest(weight, split, 3)
    monkeypatch.setattr(kronecker, "DENSE_EIGEN_SIDE", 16)
    np.testing.assert_allclose(nearest(weight, split, 3).dense(), dense.dense(), atol=1e-8)


@given(kronecker_problems(), st.integers(1, 64))
def test_both_orders_cost_what_equation_7_says(problem, tokens):
    _, _, s, rank = problem
    b_first = s.n1 * s.n2 * rank * s.m2 + s.n1 * rank * s.m2 * s.m1
    a_first = s.n1 * s.n2 * s.m1 * rank + s.n2 * rank * s.m1 * s.m2
    found = plan(s, rank, tokens)
    assert found.macs == tokens * min(a_first, b_first)
    assert found.order == ("b_first" if b_first <= a_first else "a_first")


@given(st.integers(1, 24), st.integers(1, 24))
def test_splits_are_all_that_are_admissible_once(rows, columns):
    found = splits(rows, columns)
    assert len(set(found)) == len(found)
    for split in found:
        assert (split.in_features, split.out_features) == (rows, columns)
        assert split.term_parameters < rows * columns
    if rows > 2 and columns > 2:
        assert Split(rows, 1, 1, columns) in found
        assert Split(1, columns, rows, 1) not in found


def test_signs_do_not_depend_on_the_solver():
    vectors = np.random.default_rng(12).normal(size=(6, 3))
    np.testing.assert_array_equal(signed(vectors), signed(-vectors))
