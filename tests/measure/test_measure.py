"""Interleaved timing."""

import itertools
import time

import numpy as np
import pytest

from graphcompress.data.samples import Samples
from graphcompress.measure import timing as measure
from graphcompress.measure.bench import bench
from graphcompress.measure.timing import BENCH_ROUNDS, Measurement, interleaved, turns


def test_ratio_says_how_many_times_as_fast():
    measurement = Measurement({"small": [1.0, 2.0, 4.0], "large": [3.0, 6.0, 12.0]})
    ratio = measurement.ratio("small", to="large")
    assert (ratio.median, ratio.low, ratio.high) == (3.0, 3.0, 3.0)
    assert measurement.ratio("large", to="small").median == pytest.approx(1 / 3)
    assert str(ratio) == "3.00 (3.00 to 3.00)"


def test_timing_is_median_and_10th_to_90th_percentile():
    timing = Measurement({"a": list(range(101))}).timings["a"]
    assert (timing.median_ms, timing.low_ms, timing.high_ms) == (50.0, 10.0, 90.0)


def test_everyone_takes_a_turn_in_every_round_and_the_order_rotates():
    called = []
    runs = {name: (lambda name=name: called.append(name)) for name in "abc"}
    rounds = list(itertools.islice(turns(runs, seconds=0.0), 3))
    assert [name for name, _ in itertools.groupby(called)] == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert all(set(times) == set("abc") for times in rounds)


class Clock:
    """Time that passes only when somebody says so; ``busy`` is the share of it that a core worked."""

    def __init__(self) -> None:
        self.now = self.worked = 0.0
        self.busy = 1.0

    def perf_counter(self) -> float:
        return self.now

    def process_time(self) -> float:
        return self.worked

    def sleep(self, seconds: float) -> None:
        self.now += seconds
        self.worked += seconds * self.busy


@pytest.fixture
def clock(monkeypatch) -> Clock:
    made = Clock()
    monkeypatch.setattr(measure, "time", made)
    return made


def test_measures_a_known_ratio(clock):
    clock.busy = 0.0
    runs = {"short": lambda: clock.sleep(0.004), "long": lambda: clock.sleep(0.02)}
    ratio = interleaved(runs, rounds=5, warmup=1).ratio("short", to="long")
    assert ratio.median == pytest.approx(5.0)


def test_the_first_run_of_a_turn_counts_only_where_it_is_long(clock):
    clock.busy = 0.0
    steps = iter([0.004, *[0.002] * 20])
    rounds = turns({"a": lambda: clock.sleep(next(steps))})
    assert next(rounds)["a"] == pytest.approx(2.0)
    assert len(list(steps)) == 10
    steps = iter([0.1])
    assert next(rounds)["a"] == pytest.approx(100.0)


def test_a_turn_waits_for_threads_that_are_still_spinning(clock):
    def rest_after_a_while(seconds):
        clock.busy = float(clock.now < 0.05)
        Clock.sleep(clock, seconds)

    clock.sleep = rest_after_a_while
    measure.wait_until_idle()
    assert 0.05 <= clock.now < 0.08


@pytest.mark.parametrize("tick", [0.001, 0.004, 0.01])
def test_a_thread_whose_time_is_counted_at_ticks_only_is_waited_for(clock, tick):
    clock.process_time = lambda: tick * (min(clock.now, 0.05) // tick)
    measure.wait_until_idle()
    assert clock.now > 0.05


def test_a_process_that_never_rests_is_waited_for_only_so_long(clock):
    measure.wait_until_idle()
    assert 0.25 <= clock.now < 0.27


def test_progress_is_reported_to_the_end():
    seen = []
    interleaved({"a": lambda: None}, rounds=2, warmup=0, progress=lambda *step: seen.append(step))
    assert seen == [("measure", 0, 2), ("measure", 1, 2), ("measure", 2, 2)]


@pytest.mark.parametrize(("runs", "rounds"), [({}, 3), ({"a": lambda: None}, 0)])
def test_nothing_to_measure_is_refused(runs, rounds):
    with pytest.raises(ValueError, match="nothing to measure"):
        interleaved(runs, rounds=rounds)


def test_a_shape_that_takes_too_long_is_skipped_and_a_slow_one_gets_fewer_rounds():
    samples = Samples([{"ids": np.ones(4, np.int64)}])
    runs = []

    def slow(feed):
        runs.append(feed)
        time.sleep(0.02)
        return {}

    (skipped,) = bench({"slow": slow}, samples, shapes=["1x4"], seconds=0.1)
    assert "time it with graphcompress bench" in skipped.skipped
    assert len(runs) == 1
    runs.clear()
    (measured,) = bench({"slow": slow}, samples, shapes=["1x4"], seconds=0.3)
    assert not measured.skipped
    assert measured.timings["slow"].median_ms >= 20
    assert len(runs) < 2 * BENCH_ROUNDS
