"""The promise about speed: what is lowered is timed as a whole, against the file that came in."""

from __future__ import annotations

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphcompress.data.samples import padding_mask
from graphcompress.graph.reading.hashes import sha256
from graphcompress.graph.runtime import Feed
from graphcompress.measure.cache import Measurements, Times
from graphcompress.measure.timing import Measurement, interleaved
from graphcompress.targets.common.contenders import Opener, first_run, on_cpu, run_on
from graphcompress.targets.cpu.apart import timed_apart

SLOWER = 0.97
"""A model that is less than this many times as fast as another, over all shapes, is slower than it …"""

SLOWER_AT_ONE = 0.9
"""… and so is one that is less than this many times as fast at any one shape."""

SLACK_MS = 0.05
"""Differences below this are never counted: a call alone costs about as much, and not always the same."""

REPETITIONS = 4
"""A model counts as slower when it is so by its fastest against the other's slowest of that many
measurements, each with sessions of its own: what differs between them is noise."""

ROUNDS = 3
_SECONDS = 4.0
"""That one measurement at one shape may take; a large model gets fewer rounds."""

LARGE_BYTES = 100_000_000
"""From here on two files are not in memory at once where that can be avoided."""

_METHOD = 3
"""Part of the cache's keys; raise it when times are taken in another way."""

Timer = Callable[[Mapping[str, Callable[[], object]], int], Measurement]


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
    apart: bool = False,
) -> Times:
    """Milliseconds of the models in two files for each of ``feeds``; ``subject`` is the one that is doubted.

    ``openers`` say how those files are opened that are not for the CPU provider.

    With ``apart``, large files are timed one after the other, so that never both are in memory; that is
    believed where the subject is clearly faster than the other was before and after it.

    A measurement in which the subject is slower is repeated. As long as it is slower in all of them, what
    counts is its fastest against the other's slowest, so that noise never convicts it.

    Raises:
        DataError: one of the models does not run on one of the feeds.
    """
    key = _key(files, feeds)
    kept = cache.get(key)
    if kept is not None and set(kept) == set(files) and all(len(row) == len(feeds) for row in kept.values()):
        return kept
    openers = {name: (openers or {}).get(name, on_cpu) for name in files}
    large = sum(path.stat().st_size for path in files.values()) > LARGE_BYTES
    times: Times | None = None
    if apart and large and all(opener is on_cpu for opener in openers.values()):
        times = timed_apart(files, feeds, subject=subject, than=than)
    if times is None:
        times = _repeated(lambda: _times(_opened(files, openers), feeds, timer), subject, than)
    cache.put(key, times)
    return times


def _opened(files: Mapping[str, Path], openers: Mapping[str, Opener]) -> dict[str, Any]:
    return {name: openers[name](path) for name, path in files.items()}


def _repeated(measure: Callable[[], Times], subject: str, than: str) -> Times:
    """The first measurement in which ``subject`` is not slower, or the mildest figures of all."""
    measured: list[Times] = []
    for _ in range(REPETITIONS):
        measured.append(measure())
        mildest = {
            subject: [min(row) for row in zip(*(times[subject] for times in measured), strict=True)],
            than: [max(row) for row in zip(*(times[than] for times in measured), strict=True)],
        }
        for times in (measured[-1], mildest):
            if not is_slower(times, subject, than):
                return times
    return mildest


def _times(sessions: Mapping[str, object], feeds: Sequence[Feed], timer: Timer) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for feed in feeds:
        runs = {name: run_on(session, feed) for name, session in sessions.items()}
        begun = time.perf_counter()
        for name, run in runs.items():
            first_run(name, run)
        once = time.perf_counter() - begun
        rounds = max(1, min(ROUNDS, int(_SECONDS / once)))
        for name, timing in timer(runs, rounds).timings.items():
            times[name].append(round(timing.low_ms, 5))
    return times


def _key(files: Mapping[str, Path], feeds: Sequence[Feed]) -> str:
    """What a comparison is kept under: both files, the shapes, and how much of them is padding."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name} {sha256(files[name])} ".encode())
    shapes = ",".join("x".join(map(str, next(iter(feed.values())).shape)) for feed in feeds)
    masks = [mask for feed in feeds if (mask := padding_mask(feed)) is not None and not mask.all()]
    real = "".join(f" {int(mask.sum())} real" for mask in masks)
    return f"{_METHOD} files {digest.hexdigest()[:24]} {shapes}{real}"
