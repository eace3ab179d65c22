import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphcompress.numerics.least_squares import (
    RIDGES,
    JointMoments,
    LinearMap,
    best_ridge,
    mean_squared_error,
    ridge,
)


def sample(seed=0, tokens=200, features=12, targets=5):
    rng = np.random.default_rng(seed)
    mixing = rng.standard_normal((features, features))
    x = rng.standard_normal((tokens, features)) @ mixing + rng.standard_normal(features)
    y = x @ rng.standard_normal((features, targets)) + rng.standard_normal((tokens, targets)) + 3.0
    return x, y


def moments(x, y=None, parts=3):
    seen = JointMoments(x.shape[1], 0 if y is None else y.shape[1])
    for index in np.array_split(np.arange(len(x)), parts):
        seen.update(x[index], None if y is None else y[index])
    return seen


def test_without_ridge_it_is_the_least_squares_solution():
    x, y = sample()
    fit = ridge(moments(x, y), np.zeros((12, 5)), 0.0)
    expected = np.linalg.lstsq(np.c_[x, np.ones(len(x))], y, rcond=None)[0]
    np.testing.assert_allclose(np.r_[fit.weight, fit.bias[None]], expected, atol=1e-8)


def test_the_ridge_is_the_least_squares_solution_of_the_extended_rows():
    x, y = sample()
    prior = np.random.default_rng(1).standard_normal((12, 5))
    centred = x - x.mean(0)
    pull = np.sqrt(0.3 * np.mean(centred.var(0)) * len(x))
    rows = np.r_[centred, pull * np.eye(12)]
    expected = np.linalg.lstsq(rows, np.r_[y - y.mean(0), pull * prior], rcond=None)[0]
    fit = ridge(moments(x, y), prior, 0.3)
    np.testing.assert_allclose(fit.weight, expected, atol=1e-8)
    np.testing.assert_allclose(fit.bias, y.mean(0) - x.mean(0) @ expected, atol=1e-8)


@given(st.integers(0, 10_000), st.sampled_from(RIDGES), st.integers(1, 11))
def test_a_refit_is_never_worse_than_the_prior_on_the_rows_it_saw(seed, strength, kept):
    x, y = sample(seed, tokens=8 + seed % 60)
    weight = np.linalg.lstsq(x, y, rcond=None)[0]
    seen = moments(x, y).of(np.arange(kept))
    before = LinearMap(weight[:kept], y.mean(0) - x[:, :kept].mean(0) @ weight[:kept])
    after = ridge(seen, weight[:kept], strength)
    assert mean_squared_error(after, seen) <= mean_squared_error(before, seen) * (1 + 1e-9)


def test_the_error_is_that_of_the_explicit_rows():
    x, y = sample()
    fit = LinearMap(np.ones((12, 5)), np.arange(5.0))
    expected = np.mean(np.sum((x @ fit.weight + fit.bias - y) ** 2, axis=1))
    assert mean_squared_error(fit, moments(x, y)) == pytest.approx(expected)


def test_energy_is_the_variance_of_the_targets():
    x, y = sample()
    assert moments(x, y).energy == pytest.approx(np.sum(y.var(0)))


def test_moments_of_parts_add_up():
    x, y = sample()
    whole, sum_of_parts = moments(x, y, 1), moments(x[:50], y[:50]) + moments(x[50:], y[50:])
    np.testing.assert_allclose(sum_of_parts.xx, whole.xx)
    np.testing.assert_allclose(sum_of_parts.xy, whole.xy)
    assert sum_of_parts.count == whole.count == 200
    assert sum_of_parts.yy == pytest.approx(whole.yy)


def test_aiming_at_a_linear_equals_streaming_its_outputs():
    x, _ = sample()
    weight, bias = np.random.default_rng(2).standard_normal((12, 4)), np.arange(4.0)
    aimed, streamed = moments(x).aimed_at(weight, bias), moments(x, x @ weight + bias)
    np.testing.assert_allclose(aimed.xy, streamed.xy)
    assert aimed.yy == pytest.approx(streamed.yy)


def test_what_a_constant_feature_gave_goes_into_the_bias():
    x, _ = sample()
    x[:, 3] = 0.7
    weight, bias = np.random.default_rng(2).standard_normal((12, 4)), np.arange(4.0)
    kept = np.delete(np.arange(12), 3)
    fit = ridge(moments(x).aimed_at(weight, bias).of(kept), weight[kept], 0.1)
    np.testing.assert_allclose(fit.weight, weight[kept], atol=1e-9)
    np.testing.assert_allclose(fit.bias, bias + 0.7 * weight[3], atol=1e-9)


def test_features_that_never_vary_keep_their_weight():
    x = np.tile(np.array([[1.0, 2.0]]), (9, 1))
    prior = np.array([[3.0], [4.0]])
    fit = ridge(moments(x, np.full((9, 1), 5.0)), prior, 0.1)
    np.testing.assert_array_equal(fit.weight, prior)
    assert fit.bias == pytest.approx(5.0 - 11.0)


def test_the_strength_that_is_chosen_is_best_on_unseen_rows():
    x, y = sample(tokens=60, features=40)
    prior = np.zeros((40, 5))
    fit_on, unseen = moments(x[:45], y[:45]), moments(x[45:], y[45:])
    chosen = best_ridge(fit_on, unseen, prior)
    errors = {s: mean_squared_error(ridge(fit_on, prior, s), unseen) for s in RIDGES}
    assert errors[chosen] == min(errors.values()) < max(errors.values())


def test_mapped_moments_are_those_of_mapped_rows():
    rng = np.random.default_rng(0)
    x, y, factor, shift = (rng.standard_normal(shape) for shape in ((50, 3), (50, 2), 3, 3))
    one, other = JointMoments(3, 2), JointMoments(3, 2)
    one.update(x, y)
    other.update(x * factor + shift, y)
    change = np.diag(np.append(factor, 1.0))
    change[-1, :-1] = shift
    mapped = one.mapped(change)
    np.testing.assert_allclose(mapped.xx, other.xx, atol=1e-10)
    np.testing.assert_allclose(mapped.xy, other.xy, atol=1e-10)
    assert (mapped.count, mapped.yy) == (other.count, other.yy)
