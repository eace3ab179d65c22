"""The promise about speed: what is lowered is timed as a whole, against the file that came in."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphcompress.errors import DataError
from graphcompress.forms.cache import Measurements, Times
from graphcompress.measure import Measurement, interleaved
from graphcompress.runtime import Feed, session_of

SLOWER = 0.97
"""A model that is less than this many times as fast as another, over all shapes, is slower than it …"""

SLOWER_AT_ONE = 0.9
"""… and so is one that is less than this many times as fast at any one shape."""

SLACK_MS = 0.05
"""Differences below this are never counted: a call alone costs about as much, and not always the same."""

REPETITIONS = 4
"""A model counts as slower when this many measurements in a row, each of ``ROUNDS`` rounds, all say so."""

ROUNDS = 3
_SECONDS = 4.0
"""That one measurement at one shape may take; a large model gets fewer rounds."""

_SPIN_US = 1000
_METHOD = 1
"""Part of the cache's keys; raise it when times are taken in another way."""

Opener = Callable[[Path], Any]
"""Makes a session of a file."""

Timer = Callable[[Mapping[str, Callable[[], object]], int], Measurement]


def on_cpu(path: Path) -> Any:  # noqa: ANN401 - a session of the runtime
    """A session on the CPU provider whose threads go to sleep soon, so that others can be timed."""
    return session_of(path, spin_us=_SPIN_US)


def timed(runs: Mapping[str, Callable[[], object]], rounds: int) -> Measurement:
    """Times of ``runs``, which have run once already, in turns."""
    return interleaved(runs, rounds=rounds, warmup=0)


def is_slower(times_ms: Times, name: str, than: str) -> bool:
    """Whether ``name`` is slower than ``than`` by more than noise, on the whole or at one shape."""
    own, other = (np.asarray(times_ms[key], np.float64) for key in (name, than))
    speeds = np.where(own - other < SLACK_MS, np.maximum(other / own, 1.0), other / own)
    return bool(np.exp(np.log(speeds).mean()) < SLOWER or speeds.min() < SLOWER_AT_ONE)


def compare_files(
    files: Mapping[str, Path],
    feeds: Sequence[Feed],
    cache: Measurements,
    *,
    subject: str,
    than: str,
    openers: Mapping[str, Opener] | None = None,
    timer: Timer = timed,
) -> Times:
    """Milliseconds of the models in two files for each of ``feeds``; ``subject`` is the one that is doubted.

    ``openers`` say how those files are opened that are not for the CPU provider.

    A measurement in which the subject is slower is repeated; of several the one that speaks most for the
    subject is kept, so that noise never convicts it.

    Raises:
        DataError: one of the models does not run on one of the feeds.
    """
    key = _key(files, feeds)
    kept = cache.get(key)
    if kept is not None and set(kept) == set(files) and all(len(row) == len(feeds) for row in kept.values()):
        return kept
    sessions = {name: (openers or {}).get(name, on_cpu)(path) for name, path in files.items()}
    measured: list[Times] = []
    while len(measured) < REPETITIONS and all(is_slower(times, subject, than) for times in measured):
        measured.append(_times(sessions, feeds, timer))
    best = max(measured, key=lambda times: _speed(times, subject, than))
    times = best if is_slower(measured[-1], subject, than) else measured[-1]
    cache.put(key, times)
    return times


def _speed(times: Times, name: str, than: str) -> float:
    own, other = (np.asarray(times[key], np.float64) for key in (name, than))
    return float(np.log(other / own).mean())


def _times(sessions: Mapping[str, object], feeds: Sequence[Feed], timer: Timer) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for feed in feeds:
        runs = {name: _run(session, feed) for name, session in sessions.items()}
        begun = time.perf_counter()
        for name, run in runs.items():
            _first(name, run)
        once = 2 * (time.perf_counter() - begun)  # a turn runs twice, once uncounted
        rounds = max(1, min(ROUNDS, int(_SECONDS / once)))
        for name, timing in timer(runs, rounds).timings.items():
            times[name].append(round(timing.low_ms, 5))
    return times


def _run(session: object, feed: Feed) -> Callable[[], object]:
    return lambda: session.run(None, dict(feed))  # type: ignore[attr-defined]


def _first(name: str, run: Callable[[], object]) -> None:
    try:
        run()
    except Exception as error:  # onnxruntime's exceptions share no base class
        reason = str(error).splitlines()[0][:200]
        raise DataError(f"the {name} does not run at a shape that is measured ({reason})") from error


def _key(files: Mapping[str, Path], feeds: Sequence[Feed]) -> str:
    """What a comparison is kept under: both files, and the shapes."""
    digest = hashlib.sha256()
    for name in sorted(files):
        with files[name].open("rb") as file:
            digest.update(f"{name} {hashlib.file_digest(file, 'sha256').hexdigest()} ".encode())
    shapes = ",".join("x".join(map(str, next(iter(feed.values())).shape)) for feed in feeds)
    return f"{_METHOD} files {digest.hexdigest()[:24]} {shapes}"
