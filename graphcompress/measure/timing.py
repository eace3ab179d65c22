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

from graphcompress.plugin.context import Progress, no_progress

# ---- how times are taken

LOW_PERCENT, HIGH_PERCENT = 10, 90
"""The spread that is reported goes from this to that percentile of the rounds: one neighbour's burst of load
moves the extremes, but not these."""

TURN_SECONDS = 0.02
"""A turn repeats for that long what takes less, so that the grain of the clock does not count."""

IDLE_SLICE_SECONDS = 0.012
"""A slice in which the process is watched is longer than a tick of any kernel (10 ms at most): what a thread
uses is added to the clock at ticks only, so that in a shorter slice a spinning thread looks idle."""

IDLE_SHARE = 0.2
"""A process that uses less of a core than this share in a slice counts as idle: watching uses some, too."""

IDLE_PATIENCE_SECONDS = 0.25
"""A turn waits no longer than that, five times as long as the runtime's threads spin."""

SPIN_US = 1000
"""Threads of sessions that are timed beside others spin for that long, longer than a node takes; then they
sleep, so that the next session can be timed at once instead of after 50 ms."""

# ---- graphcompress bench

BENCH_ROUNDS = 20
"""Twenty rounds put two of them beyond each reported percentile, so that no single round decides it."""

FEWEST_ROUNDS = 3
"""With fewer rounds than three no spread can be told, and nothing is reported."""

RUNS_PER_ROUND = 2
"""Each contender runs twice in a round: one run wakes the threads, the other counts."""

BENCH_SECONDS = 10.0
"""After a build each shape is measured for that long at most, so that a report does not take longer than the
passes."""

WRITING_ROUNDS, WRITING_SECONDS = 8, 60.0
"""To write takes dozens of runs of a decoder: it is given more time, and fewer rounds."""

# ---- the passes of a build

STEP_ROUNDS, STEP_SECONDS = 5, 3.0
"""The model after each pass is timed in so many rounds, for so long at most: it is a view of the report, and
is to take little beside the pass itself."""

STEP_PROFILED_RUNS = 3
"""The report's times by operator are of the fastest of so many runs."""

# ---- the roofline

ROOFLINE_ROUNDS = 8
"""A model and its products take so many turns; other work only ever adds time, so the fastest counts."""

ROOFLINE_TURN_SECONDS = 0.1
"""A turn repeats for that long what takes less: threads that slept come to run on cores of their own."""

PROFILED_RUNS = 8
"""The operators of so many runs are profiled, of which the fastest counts."""

# ---- the forms of one site

FORM_MARGIN = 1.02
"""A form other than the default has to be this many times as fast over all shapes: a smaller gain is not
worth another form than the one that is known to be good elsewhere."""

FORM_FLOOR = 0.9
"""At no shape may a form be less than this many times as fast as the default: a site is a small share of the
model's time, so a tenth of it is below what a user notices."""

FORM_LEAST_ROUNDS, FORM_ROUNDS = 2, 5
"""Forms are timed in at least so many rounds, since one has nothing to be held against, and in at most so
many, since there are dozens of sites; in between it ends when the choice is clear."""

FORM_TURN_SECONDS = 0.005
"""A turn of a form is shorter than one of a model, because a site is far smaller than a model."""

# ---- models as wholes

SLOWER = 0.97
"""A model that is less than this many times as fast as another, over all shapes, is slower than it: what
differs by less is taken for noise."""

SLOWER_AT_ONE = 0.9
"""A model that is less than this many times as fast at any one shape is slower, however fast it is at others:
a user may run that shape alone."""

SLACK_MS = 0.05
"""Differences below this are never counted: a call alone costs about as much, and not always the same."""

REPETITIONS = 4
"""A model counts as slower when it is so by its fastest against the other's slowest of that many
measurements, each with sessions of its own: what differs between them is noise."""

WHOLE_ROUNDS = 3
"""One measurement of two models takes so many rounds, since it is repeated whenever it matters."""

WHOLE_SECONDS = 4.0
"""One measurement at one shape may take that long; a large model gets fewer rounds."""

LARGE_BYTES = 100_000_000
"""Two files of more bytes than this together are not in memory at once where that can be avoided."""

CLEARLY = 1.1
"""Models that did not take turns are believed to be apart when one is this many times as fast at every shape
as the other was before and after it: they did not see the same machine, so a small lead proves nothing."""

CLEARLY_AT_ONCE = 1.5
"""Where the other was timed before only, the lead has to be this large: nothing shows what has changed."""

APART_ROUNDS = 2
"""A model that is timed alone runs in so many rounds, of which the faster counts."""

LONG_SECONDS = 0.1
"""A run that takes longer than this is not repeated: what its first time costs more is little then."""


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
    rounds: int = BENCH_ROUNDS,
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


def is_slower(times_ms: Mapping[str, Sequence[float]], name: str, than: str) -> bool:
    """Whether ``name`` is slower than ``than`` by more than noise, on the whole or at one shape.

    ``times_ms`` holds milliseconds at every shape.
    """
    own, other = (np.asarray(times_ms[key], np.float64) for key in (name, than))
    # At a shape that takes a fraction of a millisecond a ratio magnifies the cost of the call itself, so a
    # loss below the slack counts as even.
    speeds = np.where(own - other < SLACK_MS, np.maximum(other / own, 1.0), other / own)
    # Ratios are averaged geometrically: twice as fast at one shape and half as fast at another is even.
    return bool(np.exp(np.log(speeds).mean()) < SLOWER or speeds.min() < SLOWER_AT_ONE)


def turns(
    runs: Mapping[str, Callable[[], object]], seconds: float = TURN_SECONDS
) -> Iterator[dict[str, float]]:
    """Rounds without end, as :func:`interleaved` counts them: milliseconds of each of ``runs``.

    ``seconds`` is how long a turn repeats what takes less.
    """
    # A contender that always came second would always find the caches as the first left them.
    names = list(runs)
    for first in itertools.cycle(range(len(names))):
        yield {name: _turn_ms(runs[name], seconds) for name in names[first:] + names[:first]}


def _turn_ms(run: Callable[[], object], seconds: float) -> float:
    wait_until_idle()
    first = _ms(run)
    if first > 1000.0 * seconds:
        return first
    counted: list[float] = []
    end = time.perf_counter() + seconds
    while not counted or time.perf_counter() < end:
        counted.append(_ms(run))
    # Another process may interrupt a few runs of a turn; the median does not see them.
    return float(np.median(counted))


def _ms(run: Callable[[], object]) -> float:
    start = time.perf_counter()
    run()
    return (time.perf_counter() - start) * 1000.0


def wait_until_idle() -> None:
    """Wait until no thread of this process uses a core any more; gives up after a quarter of a second."""
    end = time.perf_counter() + IDLE_PATIENCE_SECONDS
    while time.perf_counter() < end:
        used, began = time.process_time(), time.perf_counter()
        time.sleep(IDLE_SLICE_SECONDS)
        if time.process_time() - used < IDLE_SHARE * (time.perf_counter() - began):
            return


def _spread(values: Sequence[float] | np.ndarray) -> tuple[float, float, float]:
    low, high = np.percentile(values, [LOW_PERCENT, HIGH_PERCENT])
    return float(np.median(values)), float(low), float(high)
