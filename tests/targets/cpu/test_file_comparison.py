"""The promise about speed: slower artifacts are refused, forms that slow a model down are taken back."""

import onnx
import pytest

from graphcompress.build.optimize import optimize
from graphcompress.errors import SpeedError
from graphcompress.graph.model import Model
from graphcompress.measure.cache import MeasurementCache
from graphcompress.measure.timing import REPETITIONS, Measurement, is_slower
from graphcompress.plugin.context import Context
from graphcompress.targets.common import form_choice
from graphcompress.targets.common.form_choice import shaped_feeds
from graphcompress.targets.cpu import cpu as cpu_target
from graphcompress.targets.cpu import file_comparison
from graphcompress.targets.cpu.cpu import Cpu, families
from graphcompress.targets.cpu.file_comparison import compare_files
from graphcompress.targets.cpu.formed_model import give_forms, refuse_slower, take_back, times_against_input

SHAPES = [(1, 4), (2, 8)]


class Clock:
    """A timer that runs nothing: the same times for every round, row after row of a script."""

    def __init__(self, *script):
        self.script = list(script)
        self.calls = 0

    def __call__(self, runs, rounds):
        row = self.script[min(self.calls // len(SHAPES), len(self.script) - 1)]
        self.calls += 1
        return Measurement({name: [row[name]] * rounds for name in runs})


@pytest.fixture
def cache(tmp_path):
    return MeasurementCache(tmp_path / "cache")


@pytest.fixture
def files(tiny_bert_path):
    return {"input": tiny_bert_path, "artifact": tiny_bert_path}


def compare(files, model, cache, clock):
    feeds = shaped_feeds(model, SHAPES, 0)
    return compare_files(files, feeds, cache, subject="artifact", than="input", timer=clock)


# ---- what counts as slower


@pytest.mark.parametrize(
    ("own", "other", "slower"),
    [
        ([10.0, 20.0], [10.0, 20.0], False),
        ([10.2, 20.4], [10.0, 20.0], False),
        ([10.5, 21.0], [10.0, 20.0], True),
        ([5.0, 23.0], [10.0, 20.0], True),  # faster on the whole, much slower at one shape
        ([5.0, 21.0], [10.0, 20.0], False),
        ([0.13, 0.14], [0.1, 0.1], False),  # within the noise of a call
        ([0.2, 0.2], [0.1, 0.1], True),
    ],
)
def test_slower_is_more_than_noise(own, other, slower):
    assert is_slower({"artifact": own, "input": other}, "artifact", "input") is slower


def test_a_clear_answer_is_measured_once(files, tiny_bert, cache):
    clock = Clock({"input": 10.0, "artifact": 5.0})
    assert compare(files, tiny_bert, cache, clock) == {"input": [10.0] * 2, "artifact": [5.0] * 2}
    assert clock.calls == len(SHAPES)


def test_slower_is_believed_only_when_every_repetition_says_so(files, tiny_bert, cache):
    slow, fair = {"input": 10.0, "artifact": 15.0}, {"input": 10.0, "artifact": 10.1}
    times = compare(files, tiny_bert, cache, Clock(slow, slow, fair, slow))
    assert not is_slower(times, "artifact", "input")


def test_confirmed_slower_keeps_the_mildest_figures(files, tiny_bert, cache):
    worse, bad = {"input": 10.0, "artifact": 15.0}, {"input": 10.0, "artifact": 12.0}
    clock = Clock(worse, bad, worse, worse)
    times = compare(files, tiny_bert, cache, clock)
    assert times["artifact"] == [12.0, 12.0]
    assert is_slower(times, "artifact", "input")
    assert clock.calls == REPETITIONS * len(SHAPES)


def test_noise_between_measurements_convicts_nobody(files, tiny_bert, cache):
    """Slower in every measurement, but by less than the same file differs from itself."""
    rows = [{"input": 10.0, "artifact": 11.5}, {"input": 12.0, "artifact": 13.5}]
    times = compare(files, tiny_bert, cache, Clock(*rows))
    assert not is_slower(times, "artifact", "input")


@pytest.mark.parametrize(
    ("before", "own", "after", "expected"),
    [
        ([10.0, 900.0], [5.0, 450.0], None, [10.0, 900.0]),  # no doubt
        ([10.0, 900.0], [7.0, 450.0], [10.5], [10.0, 900.0]),
        ([10.0, 900.0], [7.0, 450.0], [8.0], [8.0, 900.0]),  # the machine was slow before
        ([10.0, 900.0], [7.0, 450.0], [7.1], None),
        ([10.0, 900.0], [9.5, 450.0], [10.0], None),  # not clearly
        ([10.0, 900.0], [5.0, 850.0], [10.0], None),
    ],
)
def test_large_files_are_timed_apart(before, own, after, expected, files, tiny_bert, cache, monkeypatch):
    script = [row for row in (before, own, after) if row]
    monkeypatch.setattr(file_comparison, "_timed_alone", lambda name, run, feeds: script.pop(0)[: len(feeds)])
    monkeypatch.setattr(file_comparison, "LARGE_BYTES", 0)
    feeds, clock = shaped_feeds(tiny_bert, SHAPES, 0), Clock({"input": 1.0, "artifact": 1.0})
    times = compare_files(files, feeds, cache, subject="artifact", than="input", timer=clock, apart=True)
    assert times == (
        {"artifact": own, "input": expected} if expected else {"artifact": [1.0] * 2, "input": [1.0] * 2}
    )
    assert clock.calls == (0 if expected else len(SHAPES))


def test_a_model_timed_alone_runs_at_every_shape(tiny_bert, tiny_bert_path):
    feeds = shaped_feeds(tiny_bert, SHAPES, 0)
    files = {"slow": tiny_bert_path, "fast": tiny_bert_path}
    times = file_comparison.timed_apart(files, feeds, subject="fast", than="slow")
    assert times is None or all(len(row) == len(SHAPES) and min(row) > 0 for row in times.values())


def test_a_verdict_is_kept(files, tiny_bert, cache):
    first = compare(files, tiny_bert, cache, Clock({"input": 10.0, "artifact": 15.0}))
    again = Clock({"input": 10.0, "artifact": 1.0})
    assert compare(files, tiny_bert, cache, again) == first
    assert again.calls == 0


def test_an_input_that_does_not_run_at_a_shape_is_said(tiny_bert, tiny_bert_path, tmp_path, cache):
    other = onnx.load(tiny_bert_path)
    other.graph.input[0].name = "renamed"
    for node in other.graph.node:
        node.input[:] = ["renamed" if name == "input_ids" else name for name in node.input]
    onnx.save(other, tmp_path / "other.onnx")
    times, reason = times_against_input(
        tmp_path / "other.onnx", tiny_bert_path, tiny_bert, SHAPES, Context(), cache
    )
    assert times == {}
    assert "the input does not run" in reason


# ---- taking back


def test_families_that_slow_the_model_down_are_taken_back(tiny_bert, cache):
    first = give_forms(tiny_bert, families(), SHAPES, Context(), None)
    used = [choice.family for choice in first.choices if choice.form != "unchanged"]

    class Residuals(Clock):
        """Only the model that still has the residual's form is slow."""

        def __call__(self, runs, rounds):
            self.calls += 1
            return Measurement({name: [10.0 if name == "with" else self.without()] for name in runs})

        def without(self):
            return 5.0 if self.calls <= REPETITIONS * len(SHAPES) else 10.0

    kept = take_back(tiny_bert, first, families(), SHAPES, Context(), cache, timer=Residuals())
    assert kept.taken_back == (used[-1],)
    assert used[-1] not in {choice.family for choice in kept.choices}
    assert {choice.family for choice in kept.choices} == set(used) - {used[-1]}


def test_nothing_is_taken_back_that_does_not_slow_down(tiny_bert, cache):
    first = give_forms(tiny_bert, families(), SHAPES, Context(), None)
    clock = Clock({"with": 10.0, "without": 10.0})
    assert take_back(tiny_bert, first, families(), SHAPES, Context(), cache, timer=clock) is first


# ---- the build


def slow_lowering(monkeypatch):
    times = {"input": [1.0, 2.0], "artifact": [2.0, 4.0]}
    monkeypatch.setattr(cpu_target, "times_against_input", lambda *_, **__: (times, ""))
    monkeypatch.setattr(cpu_target, "take_back", lambda legal, first, *_, **__: first)


def test_a_slower_artifact_is_not_written(tiny_bert_path, tmp_path, monkeypatch):
    slow_lowering(monkeypatch)
    with pytest.raises(SpeedError, match=r"2\.00 instead of 1\.00 ms at 1×4.*allow_slower=true"):
        optimize(tiny_bert_path, "simplify", target=Cpu(shapes="1x4,2x8"), output=tmp_path / "out")
    assert not (tmp_path / "out").exists()
    assert SpeedError.exit_code == 3


def test_a_slower_artifact_can_be_allowed_and_the_report_says_so(tiny_bert_path, tmp_path, monkeypatch):
    slow_lowering(monkeypatch)
    target = Cpu(shapes="1x4,2x8", allow_slower=True)
    build = optimize(tiny_bert_path, "simplify", target=target, output=tmp_path / "out")
    assert build.lowered[0].record["speed"]["slower_than_input"]
    report = (tmp_path / "out" / "report.md").read_text()
    assert "slower than the input, which allow_slower=true accepts" in report
    assert "4.0" not in (tmp_path / "out" / "graphcompress.json").read_text().partition('"lowering"')[2]


def test_without_measuring_the_record_says_so(tiny_bert, tmp_path):
    record = Cpu(measure=False).lower(tiny_bert, tmp_path, Context()).record
    assert any("nothing was measured" in note for note in record["notes"])
    assert "speed" not in record


def test_a_model_without_a_file_is_not_compared(tiny_bert_proto, tmp_path, monkeypatch):
    from onnx_ir import from_proto

    monkeypatch.setattr(form_choice, "FORM_ROUNDS", 1)
    model = Model(from_proto(tiny_bert_proto))
    record = Cpu(shapes="1x4").lower(model, tmp_path, Context()).record
    assert any("not a file" in note for note in record["notes"])


def test_refuse_slower_lets_the_rest_pass():
    refuse_slower({}, SHAPES, "")
    refuse_slower({"input": [1.0, 1.0], "artifact": [1.0, 1.0]}, SHAPES, "")
