"""Which form is taken: it computes the same, the runtime runs it, and it is faster."""

import numpy as np
import pytest
from operator_forms import RESIDUAL, model_of, norm_weights, random, static_model

from graphcompress.measure.cache import MeasurementCache
from graphcompress.measure.timing import FORM_LEAST_ROUNDS, FORM_ROUNDS
from graphcompress.plugin.context import Context
from graphcompress.targets.common import form_choice
from graphcompress.targets.common.family import UNCHANGED
from graphcompress.targets.common.form_choice import choose_forms, fastest, measure_forms, same_outputs
from graphcompress.targets.common.integer_linear import IntegerLinear
from graphcompress.targets.cpu.residual import Residual


def test_a_form_that_computes_something_else_is_not_taken():
    class Wrong(Residual):
        @property
        def forms(self):
            def as_maximum(rw, site):
                add = site.nodes[0]
                rw.replace(add.outputs[0], rw.at(add).op("Max", *add.inputs))

            return {"max": as_maximum, **super().forms}

    model = model_of(RESIDUAL.format(op="Add"), norm_weights())
    times, refused = measure_forms(model, Wrong(), [{"x": random(2, 3, 8), "y": random(2, 3, 8, seed=2)}])
    assert set(times) == {UNCHANGED, "sum"}
    assert refused == {"max": "it gives other outputs"}


def test_a_form_that_the_runtime_refuses_is_not_taken():
    class Refused(Residual):
        @property
        def forms(self):
            def as_nothing_known(rw, site):
                add = site.nodes[0]
                rw.replace(add.outputs[0], rw.at(add).op("NoSuchOperator", *add.inputs))

            return {"unknown": as_nothing_known}

    model = model_of(RESIDUAL.format(op="Add"), norm_weights())
    times, refused = measure_forms(model, Refused(), [{"x": random(2, 3, 8), "y": random(2, 3, 8, seed=2)}])
    assert set(times) == {UNCHANGED}
    assert refused["unknown"].startswith("ONNX Runtime refuses the model")


def test_a_mistake_in_a_form_is_an_error_and_no_reason_to_leave_it_out():
    class Broken(Residual):
        @property
        def forms(self):
            return {"broken": lambda rw, site: site.nothing}

    model = model_of(RESIDUAL.format(op="Add"), norm_weights())
    with pytest.raises(AttributeError, match="nothing"):
        measure_forms(model, Broken(), [{"x": random(2, 3, 8), "y": random(2, 3, 8, seed=2)}])


def test_a_refused_form_is_recorded_with_its_reason_also_where_times_are_kept(tmp_path):
    class Half(Residual):
        @property
        def forms(self):
            def as_nothing_known(rw, site):
                rw.replace(site.nodes[0].outputs[0], rw.at(site.nodes[0]).op("NoSuchOperator"))

            return {"unknown": as_nothing_known, **super().forms}

    model = model_of(RESIDUAL.format(op="Add"), norm_weights())
    cache = MeasurementCache(tmp_path)
    records = []
    for _ in range(2):
        (choice,) = choose_forms(model.clone(), [Half()], [(2, 3)], Context(), cache=cache)
        assert choice.refused["unknown"].startswith("ONNX Runtime refuses the model")
        records.append(choice.record)
    assert records[0] == records[1]


def rounds_of(times, taken=None):
    """Turns that run nothing and give ``times``; they are counted in ``taken``."""

    def turns(runs, seconds):
        for number in range(len(times[UNCHANGED])):
            if taken is not None:
                taken.append(number)
            yield {name: times[name][number] for name in runs}

    return turns


@pytest.mark.parametrize(
    ("own", "rounds"),
    [
        ([0.5] * 7, FORM_LEAST_ROUNDS),
        ([2.0] * 7, FORM_LEAST_ROUNDS),
        ([0.8, 1.3, 1.3, 0.8, 1.3, 0.8, 1.3], FORM_ROUNDS),
    ],
)
def test_a_clear_choice_takes_few_rounds(own, rounds, monkeypatch):
    taken = []
    times = {UNCHANGED: [1.0] * 7, "sum": own}
    monkeypatch.setattr(form_choice, "turns", rounds_of(times, taken))
    model = model_of(RESIDUAL.format(op="Add"), norm_weights())
    measure_forms(model, Residual(), [{"x": random(2, 3, 8), "y": random(2, 3, 8, seed=2)}])
    assert len(taken) == rounds


def test_rounds_slowed_by_other_work_do_not_count_against_a_form(monkeypatch):
    rounds = {UNCHANGED: [1.0] * 10, "sum": [0.8] * 3 + [5.0] * 7}
    monkeypatch.setattr(form_choice, "turns", rounds_of(rounds))
    model = model_of(RESIDUAL.format(op="Add"), norm_weights())
    feeds = [{"x": random(2, 3, 8), "y": random(2, 3, 8, seed=2)}]
    assert fastest(measure_forms(model, Residual(), feeds)[0], UNCHANGED) == "sum"
    rounds["sum"] = [1.5] * 10
    assert fastest(measure_forms(model, Residual(), feeds)[0], "sum") == UNCHANGED


def test_outputs_that_are_not_a_number_are_different():
    row = np.array([1.0, 1.0], np.float32)
    assert not same_outputs([{"y": row}], [{"y": np.array([1.0, np.nan], np.float32)}])
    assert same_outputs([{"y": row}], [{"y": row.copy()}])


def test_signature_ignores_weights_and_names_but_not_sizes_and_attributes():
    def signature(model):
        return IntegerLinear().sites(model)[0].signature()

    assert signature(static_model()) == signature(static_model())
    assert signature(static_model()) != signature(static_model(columns=7))
    assert signature(static_model()) != signature(static_model(bias=False))
    first, second = (site.signature() for site in IntegerLinear().sites(static_model(columns=6, count=2)))
    assert first != second
