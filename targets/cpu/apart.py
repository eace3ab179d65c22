"""Times two models on the CPU provider one after the other, so that never both are in memory."""

from __future__ import annotations

import contextlib
import functools
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from graphcompress.graph.model import Model
from graphcompress.graph.runtime import Feed, Runner
from graphcompress.measure.cache import Times
from graphcompress.measure.timing import interleaved
from graphcompress.targets.common.contenders import SPIN_US, first_run

CLEARLY = 1.1
"""How many times as fast, at every shape, is believed of models that did not take turns, when the other was
timed before and after …"""

CLEARLY_AT_ONCE = 1.5
"""… and when it was timed before only."""

ROUNDS = 2

LONG_SECONDS = 0.1
"""A run that takes longer is not repeated: what its first time costs more is little then."""


def timed_apart(files: Mapping[str, Path], feeds: Sequence[Feed], *, subject: str, than: str) -> Times | None:
    """Milliseconds of both models for each of ``feeds``; None unless ``subject`` is clearly the faster one.

    The other model is timed before and, unless that leaves no doubt, after it, and counts as fast as it was
    in the faster of the two: a neighbour that slows down one of them does not help the subject.

    Raises:
        DataError: one of the models does not run on one of the feeds.
    """
    with _mapped(files[than]) as run:
        before = _timed(than, run, feeds)
    with _mapped(files[subject]) as run:
        own = _timed(subject, run, feeds)
    if not _is_faster(own, before, CLEARLY):
        return None
    if _is_faster(own, before, CLEARLY_AT_ONCE):
        return {subject: own, than: before}
    short = [index for index, ms in enumerate(before) if ms < 1000 * LONG_SECONDS] or [0]
    with _mapped(files[than]) as run:
        after = _timed(than, run, [feeds[index] for index in short])
    change = min(1.0, *(again / before[index] for index, again in zip(short, after, strict=True)))
    if not _is_faster(own, [ms * change for ms in before], CLEARLY):
        return None
    again = dict(zip(short, after, strict=True))
    return {subject: own, than: [min(ms, again.get(index, ms)) for index, ms in enumerate(before)]}


def _is_faster(own: Sequence[float], other: Sequence[float], times: float) -> bool:
    return all(ms * times < before for ms, before in zip(own, other, strict=True))


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[Runner]:
    """The model in a file, its weights mapped: inside an ONNX file they are held twice by a session."""
    with Runner(Model.load(path), prepack=True, spin_us=SPIN_US) as runner:
        yield runner


def _timed(name: str, run: Callable[[Feed], object], feeds: Sequence[Feed]) -> list[float]:
    """Milliseconds of one model for each of ``feeds``, the largest first: it warms up for the others."""
    times = {}
    for index, feed in sorted(enumerate(feeds), key=lambda item: _entries(item[1]), reverse=True):
        once = functools.partial(run, feed)
        begun = time.perf_counter()
        first_run(name, once)
        seconds = time.perf_counter() - begun
        if seconds < LONG_SECONDS:
            seconds = interleaved({name: once}, rounds=ROUNDS, warmup=0).timings[name].low_ms / 1000
        times[index] = round(1000 * seconds, 5)
    return [times[index] for index in range(len(feeds))]


def _entries(feed: Feed) -> int:
    return max(array.size for array in feed.values())
