"""Compares running times fairly: contenders take turns, each alone while it runs; ratios carry a spread.

A session of ONNX Runtime keeps its worker threads spinning for some 50 ms after a run, so a contender that
starts at once shares the cores with the one before it. A turn therefore begins when the process has become
idle, and its first run only wakes the threads; it counts where a run is so long that this is nothing. All
contenders of a round see the same machine, so the ratio is taken per round: a neighbour's load moves both
times, and the ratio little.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphcompress.plugin.base import Progress, no_progress

LOW_PERCENT, HIGH_PERCENT = 10, 90
"""The spread that is reported: from this to that percentile of the rounds."""

TURN_SECONDS = 0.02
_IDLE_SLICE_SECONDS = 0.012
"""Longer than a tick of any kernel (10 ms at most): what a thread uses is added to the clock at ticks only,
so that in a shorter slice a spinning thread looks idle."""

_IDLE_SHARE = 0.2
_IDLE_PATIENCE_SECONDS = 0.25


@dataclass(frozen=True)
class Timing:
    """Median time of one run over all rounds, and its 10th and 90th percentile, in milliseconds."""

    median_ms: float
    low_ms: float
    high_ms: float


@dataclass(frozen=True)
class Ratio:
    """Median over the rounds of how many times as fast, and the 10th and 90th percentile."""

    median: float
    low: float
    high: float

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


@dataclass(frozen=True)
class Measurement:
    """Times of contenders that took turns: ``rounds_ms[name][i]`` is the time of ``name`` in round i."""

    rounds_ms: Mapping[str, Sequence[float]]

    @property
    def timings(self) -> dict[str, Timing]:
        """Time of every contender."""
        return {name: Timing(*_spread(times)) for name, times in self.rounds_ms.items()}

    def ratio(self, name: str, to: str) -> Ratio:
        """How many times as fast ``name`` is as ``to``: 2.0 means half the time."""
        own, other = (np.asarray(self.rounds_ms[key]) for key in (name, to))
        return Ratio(*_spread(other / own))


def interleaved(
    runs: Mapping[str, Callable[[], object]],
    *,
    rounds: int = 20,
    warmup: int = 3,
    progress: Progress = no_progress,
    text: str = "measure",
) -> Measurement:
    """Time ``runs`` in turns, ``rounds`` times, after ``warmup`` runs of each that do not count.

    A turn waits until the process is idle, runs once uncounted, then for 20 ms, and counts the median of
    these; a run that takes longer than that counts at once. The order rotates from round to round.

    Raises:
        ValueError: there is nothing to run, or no round.
    """
    if not runs or rounds < 1:
        raise ValueError(f"nothing to measure: {len(runs)} runs, {rounds} rounds")
    for run in runs.values():
        for _ in range(warmup):
            run()
    times: dict[str, list[float]] = {name: [] for name in runs}
    for number, taken in enumerate(itertools.islice(turns(runs), rounds)):
        progress(text, number, rounds)
        for name, ms in taken.items():
            times[name].append(ms)
    progress(text, rounds, rounds)
    return Measurement(times)


def turns(
    runs: Mapping[str, Callable[[], object]], seconds: float = TURN_SECONDS
) -> Iterator[dict[str, float]]:
    """Rounds without end, as :func:`interleaved` counts them: milliseconds of each of ``runs``.

    ``seconds`` is how long a turn repeats what takes less.
    """
    names = list(runs)
    for first in itertools.cycle(range(len(names))):
        yield {name: _turn_ms(runs[name], seconds) for name in names[first:] + names[:first]}


def _turn_ms(run: Callable[[], object], seconds: float) -> float:
    _wait_until_idle()
    first = _ms(run)
    if first > 1000.0 * seconds:
        return first
    counted: list[float] = []
    end = time.perf_counter() + seconds
    while not counted or time.perf_counter() < end:
        counted.append(_ms(run))
    return float(np.median(counted))


def _ms(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000.0


def _wait_until_idle() -> None:
    """Wait until no thread of this process uses a core any more; gives up after a quarter of a second."""
    end = time.perf_counter() + _IDLE_PATIENCE_SECONDS
    while time.perf_counter() < end:
        used, began = time.process_time(), time.perf_counter()
        time.sleep(_IDLE_SLICE_SECONDS)
        if time.process_time() - used < _IDLE_SHARE * (time.perf_counter() - began):
            return


def _spread(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    low, high = np.percentile(values, [LOW_PERCENT, HIGH_PERCENT])
    return float(np.median(values)), float(low), float(high)
