"""Which of two models in files is faster on this machine, as wholes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path

from graphcompress.data.samples import padding_mask
from graphcompress.errors import DataError
from graphcompress.files.reading.hashes import sha256
from graphcompress.files.runtime import Feed, first_line, runner_of, runtime_errors, session_of
from graphcompress.graph.float_cache import float_cache_of
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.cache import Measurements, Times
from graphcompress.measure.shapes import feed_text
from graphcompress.measure.timing import (
    APART_ROUNDS,
    CLEARLY,
    CLEARLY_AT_ONCE,
    LARGE_BYTES,
    LONG_SECONDS,
    REPETITIONS,
    SPIN_US,
    WHOLE_ROUNDS,
    WHOLE_SECONDS,
    Measurement,
    interleaved,
    is_slower,
)

_METHOD = 4
"""Part of the cache's keys; raise it when times are taken in another way."""

Run = Callable[[Feed], object]
Opener = Callable[[Path], Run]
"""Makes a function that runs the model in a file."""

Timer = Callable[[Mapping[str, Callable[[], object]], int], Measurement]


def on_cpu(file: Path) -> Run:
    """Opens a file on the CPU provider; its threads go to sleep soon, so that others can be timed."""
    return float_cache_of(runner_of(session_of(file, spin_us=SPIN_US)), file)


def timed(runs: Mapping[str, Callable[[], object]], rounds: int) -> Measurement:
    """Times of ``runs``, which have run once already, in turns."""
    return interleaved(runs, rounds=rounds, warmup=0)


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
    # Apart, weights are mapped from the file, as only the CPU provider does it.
    if apart and large and all(opener is on_cpu for opener in openers.values()):
        times = timed_apart(files, feeds, subject=subject, than=than)
    if times is None:
        times = _repeated(lambda: _in_turns(_opened(files, openers), feeds, timer), subject, than)
    cache.put(key, times)
    return times


def _opened(files: Mapping[str, Path], openers: Mapping[str, Opener]) -> dict[str, Run]:
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
        # Either its last measurement acquits the subject, or the best of it against the worst of the other.
        for times in (measured[-1], mildest):
            if not is_slower(times, subject, than):
                return times
    return mildest


def _in_turns(models: Mapping[str, Run], feeds: Sequence[Feed], timer: Timer) -> dict[str, list[float]]:
    times: dict[str, list[float]] = {name: [] for name in models}
    for feed in feeds:
        runs = {name: functools.partial(run, feed) for name, run in models.items()}
        begun = time.perf_counter()
        for name, run in runs.items():
            _first_run(name, run)
        once = time.perf_counter() - begun
        # A large model gets fewer rounds, but always one.
        rounds = max(1, min(WHOLE_ROUNDS, int(WHOLE_SECONDS / once)))
        for name, timing in timer(runs, rounds).timings.items():
            times[name].append(round(timing.low_ms, 5))
    return times


def _key(files: Mapping[str, Path], feeds: Sequence[Feed]) -> str:
    """What a comparison is kept under: both files, the shapes, and how much of them is padding."""
    digest = hashlib.sha256()
    for name in sorted(files):
        digest.update(f"{name} {sha256(files[name])} ".encode())
    shapes = ",".join(map(feed_text, feeds))
    masks = [mask for feed in feeds if (mask := padding_mask(feed)) is not None and not mask.all()]
    real = "".join(f" {int(mask.sum())} real" for mask in masks)
    return f"{_METHOD} files {digest.hexdigest()[:24]} {shapes}{real}"


# ---- one after the other


def timed_apart(files: Mapping[str, Path], feeds: Sequence[Feed], *, subject: str, than: str) -> Times | None:
    """Milliseconds of both models for each of ``feeds``; None unless ``subject`` is clearly the faster one.

    The other model is timed before and, unless that leaves no doubt, after it, and counts as fast as it was
    in the faster of the two: a neighbour that slows down one of them does not help the subject.

    Raises:
        DataError: one of the models does not run on one of the feeds.
    """
    with _mapped(files[than]) as run:
        before = _timed_alone(than, run, feeds)
    with _mapped(files[subject]) as run:
        own = _timed_alone(subject, run, feeds)
    if not _is_clearly_faster(own, before, CLEARLY):
        return None
    if _is_clearly_faster(own, before, CLEARLY_AT_ONCE):
        return {subject: own, than: before}
    # The second time shows whether the machine has changed, for which the short runs suffice.
    short = [index for index, ms in enumerate(before) if ms < 1000 * LONG_SECONDS] or [0]
    with _mapped(files[than]) as run:
        after = _timed_alone(than, run, [feeds[index] for index in short])
    # Only a machine that got faster is held against the subject; a slower one would be in its favour.
    change = min(1.0, *(again / before[index] for index, again in zip(short, after, strict=True)))
    if not _is_clearly_faster(own, [ms * change for ms in before], CLEARLY):
        return None
    again = dict(zip(short, after, strict=True))
    return {subject: own, than: [min(ms, again.get(index, ms)) for index, ms in enumerate(before)]}


def _is_clearly_faster(own: Sequence[float], other: Sequence[float], times: float) -> bool:
    return all(ms * times < before for ms, before in zip(own, other, strict=True))


@contextlib.contextmanager
def _mapped(path: Path) -> Iterator[Runner]:
    """The model in a file, its weights mapped: inside an ONNX file they are held twice by a session."""
    with Runner(Model.load(path), prepack=True, spin_us=SPIN_US) as runner:
        yield runner


def _timed_alone(name: str, run: Callable[[Feed], object], feeds: Sequence[Feed]) -> list[float]:
    """Milliseconds of one model for each of ``feeds``, the largest first: it warms up for the others."""
    times = {}
    for index, feed in sorted(enumerate(feeds), key=lambda item: _entries(item[1]), reverse=True):
        once = functools.partial(run, feed)
        begun = time.perf_counter()
        _first_run(name, once)
        seconds = time.perf_counter() - begun
        if seconds < LONG_SECONDS:
            seconds = interleaved({name: once}, rounds=APART_ROUNDS, warmup=0).timings[name].low_ms / 1000
        times[index] = round(1000 * seconds, 5)
    return [times[index] for index in range(len(feeds))]


def _entries(feed: Feed) -> int:
    return max(array.size for array in feed.values())


def _first_run(name: str, run: Callable[[], object]) -> None:
    """Run once.

    Raises:
        DataError: the model called ``name`` does not run.
    """
    try:
        run()
    except runtime_errors() as error:
        raise DataError(
            f"the {name} does not run at a shape that is measured ({first_line(error)})"
        ) from error
