"""Fitted factors, the search among them, and the presets, against their definitions."""

from __future__ import annotations

import hypothesis.strategies as st
import numpy as np
import pytest
import scipy.linalg
from hypothesis import given
from strategies import kronecker_problems

from graphcompress.numerics.kronecker import (
    Factors,
    Split,
    energies,
    nearest,
    plan,
    relative_error,
    row_splits,
    splits,
)
from graphcompress.passes.kron.choice import Wish, choose_embedding, choose_linear
from graphcompress.passes.kron.fit import Problem, fit, refine, weighted_nearest
from graphcompress.passes.kron.presets import PRESETS
from graphcompress.passes.kron.rows import RowProblem
from graphcompress.passes.kron.search import captured_at_most, search


@given(kronecker_problems())
def test_fitting_never_gets_worse_and_beats_the_nearest(problem):
    weight, gram, split, rank = problem
    start = nearest(weight, split, rank)
    refined = refine(weight, start, gram)
    assert all(
        after <= before + 1e-7 for before, after in zip(refined.errors, refined.errors[1:], strict=False)
    )
    plain = relative_error(weight, start.dense(), gram)
    assert refined.errors[0] == pytest.approx(plain, abs=1e-6)
    assert fit(weight, split, rank, gram).error <= plain + 1e-6


@given(kronecker_problems())
def test_the_reported_error_is_that_of_the_factors(problem):
    weight, gram, split, rank = problem
    fitted = fit(weight, split, rank, gram)
    root = np.linalg.cholesky(gram).T
    expected = np.linalg.norm(root @ (weight - fitted.factors.dense())) / np.linalg.norm(root @ weight)
    assert fitted.error == pytest.approx(expected, abs=1e-6)


def test_a_half_step_is_the_least_squares_solution():
    rng = np.random.default_rng(1)
    split, rank = Split(3, 2, 4, 5), 2
    weight, inputs = rng.normal(size=(12, 10)), rng.normal(size=(40, 12))
    b = rng.normal(size=(rank, 20))
    columns = []
    for index in range(split.n1 * split.m1 * rank):
        a = np.zeros(split.n1 * split.m1 * rank)
        a[index] = 1.0
        columns.append((inputs @ Factors(split, a.reshape(6, rank), b).dense()).ravel())
    best = np.linalg.lstsq(np.array(columns).T, (inputs @ weight).ravel(), rcond=None)[0]
    expected = relative_error(inputs @ weight, inputs @ Factors(split, best.reshape(6, rank), b).dense())
    start = Factors(split, rng.normal(size=(6, rank)), b)
    problem = Problem(weight, inputs.T @ inputs, split)
    found = problem.solve_a(start.a, b)
    reached = np.sqrt(problem.error(found, b) / problem.signal)
    assert reached == pytest.approx(expected, abs=1e-6)


def test_low_rank_fit_is_the_optimum_of_the_weighted_problem():
    rng = np.random.default_rng(2)
    weight = rng.normal(size=(12, 9))
    root = np.tril(rng.normal(size=(12, 12))) + 3 * np.eye(12)
    gram = root @ root.T
    values = np.linalg.svd(root.T @ weight, compute_uv=False)
    best = np.sqrt(np.sum(values[4:] ** 2) / np.sum(values**2))
    assert fit(weight, Split(12, 1, 1, 9), 4, gram).error == pytest.approx(best, rel=1e-4)


def test_separable_moments_are_solved_in_closed_form():
    rng = np.random.default_rng(3)
    split = Split(4, 3, 5, 2)
    one, two = rng.normal(size=(9, 4)), rng.normal(size=(9, 5))
    gram = np.kron(one.T @ one, two.T @ two)
    weight = rng.normal(size=(20, 6))
    direct = weighted_nearest(weight, split, 2, gram)
    assert relative_error(weight, direct.dense(), gram) == pytest.approx(
        fit(weight, split, 2, gram, iterations=200).error, rel=1e-3
    )


def test_linear_flops_of_the_paper():
    """KroneckerBERT, Table 1: 1.4 GFLOP for the 21x model at 128 tokens, 21.7 for BERT-base."""

    def flops(split: Split) -> int:
        n1, m1, n2, m2 = split.n1, split.m1, split.n2, split.m2
        b_first = (2 * n2 - 1) * m2 * n1 + (2 * n1 - 1) * m2 * m1
        return min(b_first, (2 * n1 - 1) * n2 * m1 + (2 * n2 - 1) * m2 * m1)

    preset = PRESETS["k21"]
    attention, widening, narrowing = (
        preset.split("attention", 768, 768),
        preset.split("ffn", 768, 3072),
        preset.split("ffn", 3072, 768),
    )
    total = 12 * 128 * (4 * flops(attention) + flops(widening) + flops(narrowing))
    assert total == pytest.approx(1.403e9, rel=1e-3)
    assert plan(attention, 1).order == "b_first"


@pytest.mark.parametrize(("name", "millions"), [("k8", 14.65), ("k19", 5.717), ("k21", 5.228)])
def test_presets_have_the_parameters_of_the_paper(name, millions):
    """BERT-base: 12 layers of 768, 30522 words, 512 positions, 2 types, a pooler."""
    preset = PRESETS[name]
    weights = [preset.split("embedding", 30522, 768)]
    for _ in range(12):
        weights += [preset.split("attention", 768, 768)] * 4
        weights += [preset.split("ffn", 768, 3072), preset.split("ffn", 3072, 768)]
    factored = sum(split.term_parameters for split in weights)
    biases_and_norms = 12 * (4 * 768 + 3072 + 768 + 4 * 768) + 2 * 768
    kept = (512 + 2) * 768 + 768 * 768 + 768 + biases_and_norms
    assert (factored + kept) / 1e6 == pytest.approx(millions, abs=0.005 if name == "k8" else 0.0005)


def test_presets_refuse_sizes_that_do_not_divide():
    assert PRESETS["k21"].split("attention", 40, 40) is None
    assert PRESETS["k8"].split("embedding", 100, 12) is None
    assert str(PRESETS["k8"].split("attention", 768, 256)) == "384x128,2x2"


@given(st.integers(0, 2**16), st.integers(2, 12))
def test_the_bound_on_leading_eigenvalues_holds(seed, side):
    half = np.random.default_rng(seed).normal(size=(side + 2, side)) ** 3
    gram = half.T @ half
    shares = np.cumsum(scipy.linalg.eigvalsh(gram)[::-1]) / np.trace(gram)
    for rank in range(1, side + 1):
        assert captured_at_most(gram, rank) >= shares[rank - 1] - 1e-9


@pytest.mark.parametrize("weighted", [False, True])
def test_the_pruned_search_finds_what_a_full_one_does(weighted):
    rng = np.random.default_rng(4)
    weight = rng.normal(size=(12, 3)) @ rng.normal(size=(3, 16)) + 0.05 * rng.normal(size=(12, 16))
    inputs = rng.normal(size=(50, 12)) * np.linspace(0.1, 3, 12)
    gram = inputs.T @ inputs if weighted else None
    every = splits(12, 16)
    found = search(weight, gram, every, budget=96, limit=144, max_error=0.2)
    alone = [search(weight, gram, [split], budget=96, limit=144, max_error=0.2) for split in every]
    best = sorted(estimate for each in alone for estimate in each.best)[:3]
    within = sorted(estimate.parameters for each in alone for estimate in each.within)[:3]
    assert [(each.split, each.rank) for each in found.best] == [(each.split, each.rank) for each in best]
    assert [each.parameters for each in found.within] == within
    assert found.within[0].parameters < weight.size


def test_a_kronecker_structure_is_chosen_over_low_rank():
    rng = np.random.default_rng(5)
    weight = np.kron(rng.normal(size=(4, 6)), rng.normal(size=(3, 2)))
    choice = choose_linear(weight, None, Wish(tuple(splits(12, 12)), max_error=0.01))
    assert choice.factors is not None
    assert choice.factors.split == Split(4, 6, 3, 2)
    assert choice.error == pytest.approx(0.0, abs=1e-6)


def test_an_error_bound_is_kept_and_refusals_carry_figures():
    weight = np.random.default_rng(6).normal(size=(16, 16))
    refused = choose_linear(weight, None, Wish(tuple(splits(16, 16)), max_error=0.05))
    assert refused.factors is None
    assert refused.reason.endswith("is above max_error 0.05")
    assert refused.error is not None
    assert 0.05 < refused.error < 1
    taken = choose_linear(weight, None, Wish(tuple(splits(16, 16)), max_error=0.9))
    assert taken.factors is not None
    assert relative_error(weight, taken.factors.dense()) <= 0.9


def test_a_ratio_is_met_with_the_least_error():
    weight = np.random.default_rng(7).normal(size=(16, 24))
    halved = choose_linear(weight, None, Wish(tuple(splits(16, 24)), ratio=0.5))
    quartered = choose_linear(weight, None, Wish(tuple(splits(16, 24)), ratio=0.75))
    assert halved.factors is not None
    assert quartered.factors is not None
    assert halved.factors.parameters <= weight.size // 2
    assert quartered.factors.parameters <= weight.size // 4
    assert halved.error < quartered.error


def test_terms_that_are_not_smaller_are_refused():
    weight = np.eye(4)
    choice = choose_linear(weight, None, Wish((Split(2, 2, 2, 2),), rank=2))
    assert choice.factors is None
    assert "not smaller" in choice.reason
    assert choice.needs == {"needs_rank": 1.0}


def test_the_value_that_is_told_gives_factors():
    weight = np.random.default_rng(11).normal(size=(16, 24))
    many = choose_linear(weight, None, Wish((Split(4, 4, 4, 6),), rank=16))
    assert (many.factors, many.needs) == (None, {"needs_rank": 9.0})
    assert choose_linear(weight, None, Wish((Split(4, 4, 4, 6),), rank=9)).factors is not None
    every = tuple(splits(16, 24))
    steep = choose_linear(weight, None, Wish(every, ratio=0.99))
    assert steep.factors is None
    assert choose_linear(weight, None, Wish(every, ratio=steep.needs["needs_ratio"])).factors is not None


def test_an_embedding_of_repeated_pieces_is_exact():
    rng = np.random.default_rng(8)
    table = np.kron(rng.normal(size=(30, 4)), rng.normal(size=(1, 3))).astype(np.float32)
    choice = choose_embedding(table, None, Wish(tuple(row_splits(30, 12)), max_error=0.01))
    assert choice.factors is not None
    assert choice.factors.split == Split(30, 4, 1, 3)
    np.testing.assert_allclose(choice.factors.dense(), table, atol=1e-5)


@pytest.mark.parametrize("width", [2, 3, 12])
def test_embedding_errors_are_those_of_the_plain_problem_without_counts(width):
    table = np.random.default_rng(9).normal(size=(20, 12))
    split = Split(20, 12 // width, 1, width)
    expected = np.sqrt(np.clip(1 - np.cumsum(energies(table, split)) / np.sum(table**2), 0, None))
    np.testing.assert_allclose(RowProblem(table).errors(split), expected, atol=1e-6)


def test_rows_that_are_read_often_count_more():
    rng = np.random.default_rng(10)
    table = rng.normal(size=(40, 6)).astype(np.float32)
    counts = np.zeros(40)
    counts[:4] = 100
    split = Split(40, 2, 1, 3)
    plain, counted = (RowProblem(table, each).solve(split, 1).factors.dense() for each in (None, counts))
    assert np.linalg.norm((table - counted)[:4]) < np.linalg.norm((table - plain)[:4])
