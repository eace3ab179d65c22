import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphcompress.numerics.importance import (
    contribution,
    eliminate,
    eliminate_together,
    rarely_active,
    rows_of,
    unit_norms,
)


def problem(seed=0, features=8, targets=3, tokens=300):
    rng = np.random.default_rng(seed)
    x = rng.standard_normal((tokens, features)) @ rng.standard_normal((features, features))
    x -= x.mean(0)
    return x, rng.standard_normal((features, targets))


def loss(x, weight, gone):
    kept = np.setdiff1d(np.arange(x.shape[1]), gone)
    refitted = np.linalg.lstsq(x[:, kept], x @ weight, rcond=None)[0]
    return np.sum((x[:, kept] @ refitted - x @ weight) ** 2) / len(x)


@given(st.integers(0, 10_000), st.sampled_from([1, 2, 4]))
def test_errors_are_those_of_the_refit_without_these_units(seed, size):
    x, weight = problem(seed)
    rows = np.arange(8).reshape(-1, size)
    done = eliminate(x.T @ x / len(x), weight, rows, len(rows) - 1, 0.0)
    for index, error in enumerate(done.errors):
        expected = loss(x, weight, rows[done.order[: index + 1]])
        assert error == pytest.approx(expected, rel=1e-6, abs=1e-9)


@given(st.integers(0, 10_000))
def test_every_unit_that_goes_is_the_cheapest_at_that_moment(seed):
    x, weight = problem(seed)
    done = eliminate(x.T @ x / len(x), weight, np.arange(8)[:, None], 5, 0.0)
    for index, unit in enumerate(done.order):
        before = done.order[:index]
        others = np.setdiff1d(np.arange(8), before)
        best = min(loss(x, weight, [*before, other]) for other in others)
        assert loss(x, weight, [*before, unit]) == pytest.approx(best, rel=1e-6, abs=1e-9)


def test_of_two_equal_units_one_goes_for_nothing_and_only_one():
    x, weight = problem(features=200, tokens=2000)
    x[:, 7] = x[:, 3]
    done = eliminate(x.T @ x / len(x), weight, np.arange(200)[:, None], 10, 1e-9)
    assert done.order[0] in (3, 7)
    assert not {3, 7} <= set(done.order.tolist())
    assert done.errors[0] < 1e-5 < done.errors[1]


def test_portions_stay_close_to_one_by_one():
    x, weight = problem(features=120, tokens=2000)
    done = eliminate(x.T @ x / len(x), weight, np.arange(120)[:, None], 60, 0.0)
    by_magnitude = np.argsort(np.linalg.norm(weight, axis=1) * x.std(0))[:60]
    assert done.errors[-1] == pytest.approx(loss(x, weight, done.order), rel=1e-6)
    assert done.errors[-1] < 0.8 * loss(x, weight, by_magnitude)
    assert (np.diff(done.errors) >= 0).all()


def test_what_never_varies_goes_first_and_for_nothing_whatever_the_ridge():
    x, weight = problem(features=8)
    x[:, [2, 5]] = 0.0
    weight[[2, 5]] = 50.0
    done = eliminate(x.T @ x / len(x), weight, np.arange(8)[:, None], 3, 0.3)
    assert set(done.order[:2].tolist()) == {2, 5}
    np.testing.assert_allclose(done.errors[:2], 0.0, atol=1e-8)
    assert done.errors[2] > 1e-3


def test_a_constant_layer_loses_nothing():
    done = eliminate(np.zeros((4, 4)), np.ones((4, 2)), np.arange(4)[:, None], 3, 0.1)
    np.testing.assert_array_equal(done.errors, 0.0)
    assert len(set(done.order.tolist())) == 3


def test_contribution_is_the_energy_of_the_part_of_the_output():
    x, weight = problem(features=6)
    units = np.array([0, 1, 0, -1, 1, 0])
    energies = contribution(x.T @ x / len(x), weight, units, 2)
    for unit in range(2):
        part = x[:, units == unit] @ weight[units == unit]
        assert energies[unit] == pytest.approx(np.mean(np.sum(part**2, axis=1)))


@pytest.mark.parametrize("axis", [0, 1])
def test_unit_norms_cover_what_a_unit_owns(axis):
    array = np.arange(24.0).reshape(4, 6)
    units = np.array([0, 1, 1, -1]) if axis == 0 else np.array([0, 0, -1, 1, 1, 1])
    norms = unit_norms(array, axis, units, 2)
    for unit in range(2):
        assert norms[unit] == pytest.approx(np.linalg.norm(np.compress(units == unit, array, axis)))


def test_rows_of_units_that_lie_apart():
    np.testing.assert_array_equal(rows_of(np.array([1, 0, -1, 0, 1])), [[1, 3], [0, 4]])


def test_units_of_different_sizes_are_refused():
    with pytest.raises(ValueError, match="different numbers"):
        rows_of(np.array([0, 0, 1]))


def test_rarely_active_units_are_below_the_share_of_the_spread():
    peaks = np.array([0.0, 0.01, 1.0, 2.0, 3.0])
    spread = np.std(peaks)
    for z, unit in itertools.product((0.0, 0.005, 0.1, 1.0), range(5)):
        assert rarely_active(peaks, z)[unit] == (peaks[unit] < z * spread)
    assert rarely_active(peaks, 0.1).tolist() == [True, True, False, False, False]


def test_several_linears_lose_the_features_that_cost_their_sum_least():
    """Brute force over all pairs, of inputs that nothing ties together: costs add up."""
    rng = np.random.default_rng(1)
    spreads = rng.uniform(0.5, 2.0, (2, 6))
    weights = [rng.standard_normal((6, 4)), rng.standard_normal((6, 3))]
    costs = np.zeros(6)
    for spread, weight in zip(spreads, weights, strict=True):
        alone = spread * np.sum(weight**2, axis=1)
        costs += alone / alone.sum()
    gone = eliminate_together([np.diag(spread) for spread in spreads], weights, 2, 1e-9)
    assert gone.tolist() == np.argsort(costs)[:2].tolist()


def test_a_feature_that_others_replace_in_every_linear_goes_first():
    rng = np.random.default_rng(2)
    x = rng.standard_normal((400, 5))
    x = np.concatenate([x, x[:, :1] + x[:, 1:2]], axis=1)
    weights = [rng.standard_normal((6, 4)) for _ in range(2)]
    (first,) = eliminate_together([np.cov(x.T)] * 2, weights, 1, 1e-6)
    assert first in (0, 1, 5)
