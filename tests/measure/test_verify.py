"""Differences are measured as defined; what cannot be compared is never called equal."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from graphcompress.data.load import Samples
from graphcompress.errors import ContractError, DataError
from graphcompress.graph.runner import Runner
from graphcompress.measure.invariance import batch_invariance
from graphcompress.measure.structure import check_structure, interface
from graphcompress.measure.verify import compare
from graphcompress.numerics.metrics import divergences
from graphcompress.plugin.context import Context
from graphcompress.plugin.contract import Exact, Lossy
from graphcompress.rewrite.rewriter import Rewriter

FEED = {"x": np.zeros((4, 1), np.float32)}


def difference(expected: np.ndarray, actual: np.ndarray, feed=FEED):
    return compare([{"y": expected}], lambda feed: {"y": actual}, [feed])


def noise(seed: int, *shape: int) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@given(st.integers(0, 99))
def test_the_same_outputs_have_no_difference(seed) -> None:
    y = noise(seed, 4, 7)
    found = difference(y, y.copy())
    assert (found.sqnr_db, found.max_error, found.max_relative_error) == (200.0, 0.0, 0.0)
    assert (found.min_cosine, found.argmax_agreement, found.samples) == (1.0, 1.0, 4)


@given(st.integers(0, 99), st.floats(-20, 80))
def test_noise_of_known_power_gives_that_sqnr(seed, wanted_db) -> None:
    y, n = noise(seed, 4, 500).astype(np.float64), noise(seed + 1, 4, 500).astype(np.float64)
    n *= np.sqrt(np.sum(y**2) / np.sum(n**2)) * 10 ** (-wanted_db / 20)
    assert difference(y, y + n).sqnr_db == pytest.approx(wanted_db, abs=1e-6)


@given(st.integers(0, 99), st.floats(1e-3, 1e3))
def test_figures_do_not_depend_on_the_unit(seed, scale) -> None:
    a, b = noise(seed, 4, 9).astype(np.float64), noise(seed + 1, 4, 9).astype(np.float64)
    one, other = difference(a, b), difference(a * scale, b * scale)
    assert one.sqnr_db == pytest.approx(other.sqnr_db, abs=1e-6)
    assert one.max_relative_error == pytest.approx(other.max_relative_error)
    assert one.argmax_agreement == other.argmax_agreement


@given(st.integers(0, 99))
def test_error_and_agreement_are_symmetric(seed) -> None:
    a, b = noise(seed, 4, 9), noise(seed + 1, 4, 9)
    one, other = difference(a, b), difference(b, a)
    assert one.max_error == other.max_error
    assert one.min_cosine == pytest.approx(other.min_cosine)
    assert one.argmax_agreement == other.argmax_agreement


@pytest.mark.parametrize("wrong", [np.nan, np.inf, -np.inf])
def test_a_number_lost_is_the_largest_error(wrong) -> None:
    y = noise(0, 4, 7)
    broken = y.copy()
    broken[1, 2] = wrong
    found = difference(y, broken)
    assert found.max_error == np.inf
    assert found.sqnr_db == -200.0
    assert Exact().broken_by(found)
    assert Lossy(min_sqnr_db=-100).broken_by(found)


def test_the_same_infinity_is_no_difference() -> None:
    y = noise(0, 4, 7)
    y[0, 0], y[1, 1] = -np.inf, np.nan
    found = difference(y, y.copy())
    assert (found.max_error, found.sqnr_db, found.min_cosine) == (0.0, 200.0, 1.0)
    assert Exact().broken_by(found) is None


def test_labels_count_entry_by_entry() -> None:
    y = np.array([1, 2, 3, 4])
    assert difference(y, y).argmax_agreement == 1.0
    found = difference(y, np.array([1, 2, 3, 5]))
    assert found.argmax_agreement == 0.75
    assert Exact().broken_by(found)


@pytest.mark.parametrize(("wrong", "broken"), [(0, False), (1, False), (2, True), (20, True)])
def test_labels_that_differ_break_a_lossy_contract(wrong: int, broken: bool) -> None:
    labels = np.arange(20)
    changed = np.where(np.arange(20) < wrong, -1, labels)
    feeds = [{"x": np.zeros((20, 1))}]
    difference = compare([{"label": labels}], lambda feed: {"label": changed}, feeds)
    assert (Lossy(min_sqnr_db=12.0).broken_by(difference) is not None) == broken


def test_padding_is_not_looked_at() -> None:
    feed = {"attention_mask": np.array([[1, 1, 0], [1, 0, 0]])}
    y = noise(0, 2, 3, 5)
    other = y.copy()
    other[feed["attention_mask"] == 0] = 99.0
    assert difference(y, other, feed).sqnr_db == 200.0
    other[0, 0] = 99.0
    assert difference(y, other, feed).sqnr_db < 0.0


@pytest.mark.parametrize("actual", [{}, {"y": np.zeros((4, 6))}])
def test_a_missing_or_reshaped_output_breaks_any_contract(actual) -> None:
    with pytest.raises(ContractError, match="output 'y': expected shape"):
        compare([{"y": np.zeros((4, 7))}], lambda feed: actual, [FEED])


@pytest.mark.parametrize("shape", [(0, 7), (4, 0)])
def test_nothing_compared_is_not_proven(shape) -> None:
    empty = np.zeros(shape, np.float32)
    with pytest.raises(DataError, match="nothing was compared, so nothing is shown: output 'y' is empty"):
        difference(empty, empty)
    with pytest.raises(DataError, match="nothing is shown: no samples"):
        compare([], lambda feed: {}, [])


def test_padding_alone_is_nothing() -> None:
    feed = {"attention_mask": np.zeros((4, 7), np.int64)}
    y = noise(0, 4, 7, 3)
    with pytest.raises(DataError, match="nothing was compared"):
        difference(y, y, feed)


def test_an_output_that_is_empty_now_and_then_is_compared_where_it_is_not() -> None:
    feeds, outputs = [FEED, FEED], [{"y": np.zeros((0, 3))}, {"y": np.ones((2, 3))}]
    answers = iter(outputs)
    assert compare(outputs, lambda feed: next(answers), feeds).samples == 8


# ---- several outputs


def several(expected: dict, actual: dict, feed=FEED):
    return compare([expected], lambda feed: actual, [feed])


def test_differences_are_told_per_output_and_logits_come_first() -> None:
    names = ["present.0.key", "hidden_states.3", "pooled", "logits"]
    y = {name: noise(number, 4, 7) for number, name in enumerate(names)}
    off = {**y, "pooled": y["pooled"] * 1.1, "logits": -y["logits"]}
    found = several(y, off)
    assert [output.name for output in found.outputs] == [
        "logits",
        "pooled",
        "present.0.key",
        "hidden_states.3",
    ]
    assert [round(output.sqnr_db, 3) for output in found.outputs] == [-6.021, 20.0, 200.0, 200.0]
    assert (found.worst.name, found.sqnr_db) == ("logits", found.outputs[0].sqnr_db)
    assert found.argmax_agreement == found.outputs[0].argmax_agreement
    assert Lossy(min_sqnr_db=12.0).broken_by(found) == (
        "SQNR -6.0 dB (output 'logits'), promised at least 12 dB"
    )
    assert Exact().broken_by(found).startswith("largest error 2.00e+00 of the output range (output 'logits')")


def test_sixty_perfect_outputs_do_not_hide_the_one_that_matters() -> None:
    y = {f"hidden_states.{number}": noise(number, 4, 7) for number in range(60)}
    y["logits"] = np.eye(4, 7)
    found = several(y, {**y, "logits": np.roll(y["logits"], 1, axis=1)})
    assert found.argmax_agreement == 0.0


def test_an_output_of_one_entry_per_row_has_no_agreement() -> None:
    assert several({"y": np.ones((4, 1))}, {"y": np.ones((4, 1))}).argmax_agreement is None


def test_copies_of_inputs_are_left_out() -> None:
    feed, y = {"x": noise(0, 4, 7)}, noise(1, 4, 7)
    found = several({"echo": feed["x"], "y": y}, {"echo": feed["x"], "y": y * 1.1}, feed)
    assert [output.name for output in found.outputs] == ["y"]
    wrong = several({"echo": feed["x"], "y": y}, {"echo": feed["x"] * 1.2, "y": y * 1.1}, feed)
    assert wrong.worst.name == "echo"


def test_a_model_that_only_copies_is_judged_by_that() -> None:
    feed = {"x": noise(0, 4, 7)}
    assert [output.entries for output in several(feed, feed, feed).outputs] == [28]


def test_past_keys_do_not_raise_the_figure_of_present_ones() -> None:
    past, new = noise(0, 2, 3, 50, 8) * 100, noise(1, 2, 3, 1, 8)
    before, after = (np.concatenate([past, part], axis=2) for part in (new, new * 1.1))
    (found,) = several({"present": before}, {"present": after}, {"past": past}).outputs
    assert found.sqnr_db == pytest.approx(20.0, abs=1e-3)
    assert found.entries == new.size


def test_a_mask_of_ones_is_no_copy() -> None:
    feed = {"mask": np.ones((4, 7), np.float32)}
    assert several({"y": feed["mask"]}, {"y": feed["mask"]}, feed).outputs[0].entries == 28


def test_what_was_made_up_is_said() -> None:
    samples = Samples([{"x": np.zeros(1)}] * 3, synthetic=True)
    found = compare([{"y": np.ones((4, 2))}], lambda feed: {"y": np.ones((4, 2))}, [FEED], samples=samples)
    assert (found.samples, found.samples_text) == (3, "3 made-up samples")


# ---- batch invariance


def ragged(count: int) -> Samples:
    return Samples([{"x": np.full(index + 1, index + 1.0)} for index in range(count)])


def test_an_answer_of_its_own_is_invariant() -> None:
    found = batch_invariance(lambda feed: {"y": feed["x"] * 2}, ragged(11), batch=4)
    assert (found.samples, found.changed, found.max_relative_error) == (11, 0, 0.0)


def test_an_answer_that_looks_at_batch_mates_is_found() -> None:
    found = batch_invariance(lambda feed: {"y": feed["x"] + feed["x"].max()}, ragged(8), batch=4)
    assert found.changed == 6  # the largest of each batch keeps its answer
    assert found.max_relative_error > 0.1


@pytest.mark.parametrize(
    "place",
    [
        lambda y: y[None],
        lambda y: y.T[:, None],
        lambda y: np.stack([y, y], axis=2),
    ],
    ids=["a size of one in front", "time-major", "time and channels behind"],
)
def test_the_batch_is_found_wherever_it_is(place) -> None:
    samples = ragged(5)
    assert batch_invariance(lambda feed: {"y": place(feed["x"] * 2)}, samples).changed == 0
    assert batch_invariance(lambda feed: {"y": place(feed["x"] + feed["x"].max())}, samples).changed == 4


def test_an_output_of_no_row_is_not_looked_at() -> None:
    found = batch_invariance(lambda feed: {"y": feed["x"].mean(0, keepdims=True)[:, :1]}, ragged(5))
    assert (found.samples, found.changed) == (0, 0)


def test_outputs_of_nothing_but_zeros_are_invariant() -> None:
    assert batch_invariance(lambda feed: {"y": feed["x"] * 0}, ragged(3)).changed == 0


def test_a_fixed_batch_is_compared_as_well() -> None:
    samples = Samples([{"x": np.ones(3) * index} for index in range(5)], fixed={"x": (2, 3)})
    assert batch_invariance(lambda feed: {"y": feed["x"] * 2}, samples).changed == 0
    assert batch_invariance(lambda feed: {"y": feed["x"] + feed["x"].max()}, samples).changed == 2


def test_bert_is_invariant(tiny_bert, tiny_samples) -> None:
    with Runner(tiny_bert) as run:
        assert batch_invariance(run, tiny_samples).changed == 0


# ---- structure


def test_a_whole_model_passes(tiny_bert) -> None:
    before = interface(tiny_bert)
    tiny_bert.infer_shapes()
    assert check_structure(tiny_bert, before) is None


def test_a_renamed_output_is_found(tiny_bert) -> None:
    before = interface(tiny_bert)
    tiny_bert.graph.outputs[0].name = "other"
    with pytest.raises(ContractError, match="outputs changed"):
        check_structure(tiny_bert, before)


def test_what_the_checker_refuses_is_found(tiny_bert) -> None:
    before = interface(tiny_bert)
    rw = Rewriter(tiny_bert, Context())
    rw.at(None).op("Frobnicate", tiny_bert.graph.inputs[0])
    with pytest.raises(ContractError, match="ONNX checker refuses the result"):
        check_structure(tiny_bert, before)


# ---- scores of tokens


def test_divergence_is_that_of_the_distributions():
    rng = np.random.default_rng(0)
    a, b = rng.standard_normal((2, 5, 7))
    p, q = (np.exp(array) / np.exp(array).sum(-1, keepdims=True) for array in (a, b))
    np.testing.assert_allclose(divergences(a, b), (p * np.log(p / q)).sum(-1), rtol=1e-12)
    # Scores are the same up to a constant, however large; what cannot be adds nothing.
    np.testing.assert_allclose(divergences(a, a + 1e4), 0.0, atol=1e-10)
    a[:, 0] = b[:, 0] = -np.inf
    assert np.isfinite(divergences(a, b)).all()


def test_first_passes_and_steps_are_judged_apart():
    rng = np.random.default_rng(0)
    past = np.zeros((2, 1, 0, 4), np.float32)
    feeds = [
        {"input_ids": np.ones((2, 50)), "past_key_values.0.key": past},
        {"input_ids": np.ones((8, 1)), "past_key_values.0.key": rng.random((8, 1, 3, 4))},
    ]
    expected = [{"logits": rng.standard_normal((rows, length, 9))} for rows, length in ((2, 50), (8, 1))]

    def divergence(steps: np.ndarray) -> float | None:
        answers = iter([expected[0], {"logits": steps}])
        return compare(expected, lambda feed: next(answers), feeds).divergence

    # The steps alone are wrong: eight rows of 108.
    rows = divergences(expected[1]["logits"].reshape(8, 9), -expected[1]["logits"].reshape(8, 9))
    every = np.concatenate([rows, np.zeros(100)])
    assert rows.mean() - 2 * max(rows.std(), every.std()) / 8**0.5 > every.mean()
    assert divergence(-expected[1]["logits"]) == pytest.approx(rows.mean())
    # One unlucky step of eight says nothing of steps.
    one = expected[1]["logits"].copy()
    one[0] *= -1
    assert divergence(one) == pytest.approx(rows[0] / 108)


def test_labels_of_a_whole_text_are_no_scores_of_tokens():
    rng = np.random.default_rng(0)
    found = compare([{"logits": rng.random((4, 3))}], lambda feed: {"logits": rng.random((4, 3))}, [FEED])
    assert found.divergence is None


def test_a_contract_may_bound_the_divergence():
    one = {"logits": np.zeros((1, 1, 2))}
    found = compare([one], lambda feed: {"logits": np.array([[[0.0, 0.6]]])}, [FEED])
    assert found.sure_divergence == found.divergence
    reason = Lossy(-300.0, max_divergence=0.02).broken_by(found)
    assert reason is not None
    assert "scores of tokens diverge by 0.044 nats" in reason
    assert Lossy(-300.0, max_divergence=0.05).broken_by(found) is None
    assert Lossy(-300.0).broken_by(found) is None


def test_a_divergence_by_chance_breaks_no_contract():
    expected, rng = np.zeros((1, 50, 2)), np.random.default_rng(0)
    actual = np.zeros((1, 50, 2))
    actual[..., 1] = np.abs(rng.standard_normal(50))
    found = compare([{"logits": expected}], lambda feed: {"logits": actual}, [FEED])
    rows = divergences(expected[0], actual[0])
    sure = rows.mean() - 2 * rows.std() / 50**0.5
    assert Lossy(-300.0, max_divergence=1.001 * sure).broken_by(found) is None
    assert Lossy(-300.0, max_divergence=0.999 * sure).broken_by(found) is not None


@pytest.mark.parametrize("broken", [np.nan, -np.inf, -1e30])
def test_a_column_of_scores_that_is_broken_is_no_dropped_token(broken: float) -> None:
    scores = np.random.default_rng(0).standard_normal((1, 4, 8)).astype(np.float32)
    other = scores.copy()
    other[..., 3] = broken
    with np.errstate(all="ignore"):
        found = compare([{"logits": scores}], lambda feed: {"logits": other}, [{"x": scores}])
    assert not found.sqnr_db > 0
