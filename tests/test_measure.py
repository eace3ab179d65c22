"""Interleaved timing."""

import itertools
import threading
import time

import pytest

from graphcompress import measure
from graphcompress.measure import Measurement, interleaved


def test_ratio_says_how_many_times_as_fast():
    measurement = Measurement({"small": [1.0, 2.0, 4.0], "large": [3.0, 6.0, 12.0]})
    ratio = measurement.ratio("small", to="large")
    assert (ratio.median, ratio.low, ratio.high) == (3.0, 3.0, 3.0)
    assert measurement.ratio("large", to="small").median == pytest.approx(1 / 3)
    assert str(ratio) == "3.00 (3.00 to 3.00)"


def test_timing_is_median_and_10th_to_90th_percentile():
    timing = Measurement({"a": list(range(101))}).timings["a"]
    assert (timing.median_ms, timing.low_ms, timing.high_ms) == (50.0, 10.0, 90.0)


def test_everyone_takes_a_turn_in_every_round_and_the_order_rotates(monkeypatch):
    monkeypatch.setattr(measure, "_TURN_SECONDS", 0.0)
    called = []
    runs = {name: (lambda name=name: called.append(name)) for name in "abc"}
    result = interleaved(runs, rounds=3, warmup=1)
    turns = [name for name, _ in itertools.groupby(called[3:])]
    assert turns == ["a", "b", "c", "b", "c", "a", "c", "a", "b"]
    assert all(len(times) == 3 for times in result.rounds_ms.values())


def test_measures_a_known_ratio():
    runs = {"short": lambda: time.sleep(0.004), "long": lambda: time.sleep(0.02)}
    ratio = interleaved(runs, rounds=5, warmup=1).ratio("short", to="long")
    assert 3.0 < ratio.median < 6.0


def test_a_turn_waits_for_threads_that_are_still_spinning():
    stop = threading.Event()

    def spin():
        while not stop.is_set():
            pass

    spinner = threading.Thread(target=spin)
    spinner.start()
    timer = threading.Timer(0.06, stop.set)
    began = time.perf_counter()
    timer.start()
    measure._wait_until_idle()
    waited = time.perf_counter() - began
    stop.set()
    spinner.join()
    assert waited >= 0.05


def test_a_process_that_never_rests_is_waited_for_only_so_long(monkeypatch):
    monkeypatch.setattr(measure, "_IDLE_SHARE", -1.0)
    monkeypatch.setattr(measure, "_IDLE_PATIENCE_SECONDS", 0.02)
    began = time.perf_counter()
    measure._wait_until_idle()
    assert time.perf_counter() - began < 2.0


def test_progress_is_reported_to_the_end():
    seen = []
    interleaved({"a": lambda: None}, rounds=2, warmup=0, progress=lambda *step: seen.append(step))
    assert seen == [("measure", 0, 2), ("measure", 1, 2), ("measure", 2, 2)]


@pytest.mark.parametrize(("runs", "rounds"), [({}, 3), ({"a": lambda: None}, 0)])
def test_nothing_to_measure_is_refused(runs, rounds):
    with pytest.raises(ValueError, match="nothing to measure"):
        interleaved(runs, rounds=rounds)
