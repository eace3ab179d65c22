"""How fast models and artifacts are, side by side: they take turns, and ratios come with their spread."""

from __future__ import annotations

import math
import re
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from graphcompress.data.load import Samples
from graphcompress.errors import GraphCompressError, UsageError
from graphcompress.files.runtime import first_line, runtime_errors
from graphcompress.measure.timing import (
    BENCH_ROUNDS,
    FEWEST_ROUNDS,
    RUNS_PER_ROUND,
    Ratio,
    Timing,
    interleaved,
)
from graphcompress.measure.verify import Run
from graphcompress.plugin.context import Progress, no_progress

SHAPES = ("1xnatural", "1x128", "8x128")
_SHAPE = re.compile(r"(\d+)x(\d+|natural)")


WRITTEN = " (written)"
"""End of a shape at which models write: ``8×32 (written)`` is 8 texts of 32 new tokens."""


@dataclass(frozen=True)
class ShapeResult:
    """Times at one shape; ratios say how many times as fast each contender is as the first one.

    Attributes:
        shape: such as ``8×128``, or ``8×3×224×224`` where no input has a length.
        first: the contender that the others are compared with.
        timings: per contender.
        ratios: per contender but the first, where that one runs.
        skipped: why nothing was measured, or an empty text.
        failed: contender that does not run at this shape → why.
        asked: the shape as it was asked for, such as ``8x128`` or ``1xnatural``.
    """

    shape: str
    first: str
    timings: Mapping[str, Timing] = field(default_factory=dict)
    ratios: Mapping[str, Ratio] = field(default_factory=dict)
    skipped: str = ""
    failed: Mapping[str, str] = field(default_factory=dict)
    asked: str = ""

    @property
    def written(self) -> bool:
        """Whether this is the time to write so many tokens, not that of one run of the model."""
        return self.shape.endswith(WRITTEN)

    @property
    def size(self) -> tuple[int, int]:
        """Batch, and length where an input has one."""
        batch, length = self.shape.partition(" ")[0].split("×")[:2]
        return int(batch), int(length)


def bench(
    contenders: Mapping[str, Run],
    samples: Samples,
    *,
    shapes: Sequence[str] = SHAPES,
    rounds: int = BENCH_ROUNDS,
    seconds: float = math.inf,
    progress: Progress = no_progress,
) -> list[ShapeResult]:
    """Time ``contenders`` on feeds of ``shapes``: ``<batch>x<length>``, ``natural`` for the median length.

    Of images and the like, which have no length, only the batch counts; a model with past keys and values is
    timed at natural lengths alone. A shape is given fewer rounds where
    ``rounds`` would take more than ``seconds``, and is skipped where three would.

    Raises:
        UsageError: a shape that does not read.
    """
    first = next(iter(contenders))
    results = []
    if samples.past:  # past keys and values have the lengths that the samples have
        shapes = [shape for shape in shapes if shape.endswith("natural")] or ["1xnatural"]
    feeds = {label: (shape, feed) for shape in shapes for feed, label in (shaped_feed(samples, shape),)}
    for label, (asked, feed) in feeds.items():
        took, failed = _first_runs(contenders, feed)
        running = {name: run for name, run in contenders.items() if name not in failed}
        possible = int(min(rounds, seconds / (RUNS_PER_ROUND * took))) if took else rounds
        reason = "" if running else next(iter(failed.values()))
        if running and possible < min(rounds, FEWEST_ROUNDS):
            reason = f"a run of each takes {took:.2g} s; time it with graphcompress bench"
        if reason:
            results.append(ShapeResult(label, first, skipped=reason, failed=failed, asked=asked))
            continue
        runs = {name: (lambda run=run, feed=feed: run(feed)) for name, run in running.items()}
        measured = interleaved(runs, rounds=possible, warmup=1, progress=progress, text=f"measure {label}")
        others = [name for name in running if name != first and first in running]
        ratios = {name: measured.ratio(name, first) for name in others}
        results.append(ShapeResult(label, first, measured.timings, ratios, failed=failed, asked=asked))
    return results


def shaped_feed(samples: Samples, shape: str) -> tuple[dict[str, np.ndarray], str]:
    """A feed of ``shape`` made from ``samples``, without padding, and its label such as ``1×17 (natural)``.

    The sample of median length is repeated along its first axis up to the length; an input without one stays.

    Raises:
        UsageError: the shape is not ``<batch>x<length>`` or ``<batch>xnatural``.
    """
    batch, asked = read_shape(shape)
    order = samples.order(by_length=True)
    sample = samples.feeds[order[len(order) // 2]]
    if not has_length(samples):
        largest = max(sample.values(), key=lambda array: array.size)
        label = "×".join(map(str, (batch, *largest.shape)))
        return {name: np.stack([array] * batch) for name, array in sample.items()}, label
    own = max((array.shape[0] for array in sample.values() if array.ndim), default=0)
    length = own if asked is None else asked
    label = f"{batch}×{length}" + (" (natural)" if asked is None else "")
    feed = {name: np.stack([stretched(array, own, length)] * batch) for name, array in sample.items()}
    return feed, label


def read_shape(shape: str) -> tuple[int, int | None]:
    """Batch and length of ``8x128``; the length of ``1xnatural`` is None, that of the samples.

    Raises:
        UsageError: it is neither.
    """
    match = _SHAPE.fullmatch(shape)
    if match is None or int(match[1]) < 1 or match[2] == "0":
        raise UsageError(
            f"cannot read shape {shape!r}: expected <batch>x<length>, such as 8x128 or 1xnatural"
        )
    return int(match[1]), None if match[2] == "natural" else int(match[2])


def has_length(samples: Samples) -> bool:
    """Whether an input is a sequence, whose length may be chosen; images and fixed features are none."""
    return any(
        array.ndim == 1 or (array.ndim == 2 and (samples.fixed.get(name) or (None, None))[1] is None)
        for name, array in samples.feeds[0].items()
    )


def stretched(array: np.ndarray, own: int, length: int) -> np.ndarray:
    """``array``, repeated along its first axis up to ``length`` where that axis has the length ``own``."""
    if not array.ndim or array.shape[0] != own or own == length:
        return array
    repeats = -(-length // own)
    return np.concatenate([array] * repeats)[:length]


def _first_runs(
    contenders: Mapping[str, Run], feed: Mapping[str, np.ndarray]
) -> tuple[float, dict[str, str]]:
    """Seconds that one run of each took, and why some of them did not run."""
    start, failed = time.perf_counter(), {}
    for name, run in contenders.items():
        try:
            run(feed)
        except runtime_errors(GraphCompressError) as error:
            failed[name] = f"{name} does not run at this shape ({first_line(error)})"
    return time.perf_counter() - start, failed
