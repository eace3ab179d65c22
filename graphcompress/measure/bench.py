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
from graphcompress.graph.runtime import first_line, runtime_errors
from graphcompress.measure.timing import (
    BENCH_ROUNDS,
    FEWEST_ROUNDS,
    RUNS_PER_ROUND,
    Ratio,
    Timing,
    interleaved,
)
from graphcompress.measure.verify import Run
from graphcompress.plugin.base import Progress, no_progress

SHAPES = ("1xnatural", "1x128", "8x128")
_SHAPE = re.compile(r"(\d+)x(\d+|natural)")


@dataclass(frozen=True)
class ShapeResult:
    """Times at one shape; ratios say how many times as fast each contender is as the first one.

    Attributes:
        shape: such as ``8×128``.
        first: the contender that the others are compared with.
        timings: per contender.
        ratios: per contender but the first.
        skipped: why nothing was measured, or an empty text.
    """

    shape: str
    first: str
    timings: Mapping[str, Timing] = field(default_factory=dict)
    ratios: Mapping[str, Ratio] = field(default_factory=dict)
    skipped: str = ""

    @property
    def size(self) -> tuple[int, int]:
        """Batch and length."""
        batch, length = self.shape.partition(" ")[0].split("×")
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

    A shape is given fewer rounds where ``rounds`` would take more than ``seconds``, and is skipped where
    three would.

    Raises:
        UsageError: a shape that does not read.
    """
    first = next(iter(contenders))
    results = []
    for shape in shapes:
        feed, label = shaped_feed(samples, shape)
        took, reason = _first_runs(contenders, feed)
        possible = int(min(rounds, seconds / (RUNS_PER_ROUND * took))) if took else rounds
        if not reason and possible < min(rounds, FEWEST_ROUNDS):
            reason = f"a run of each takes {took:.2g} s; time it with graphcompress bench"
        if reason:
            results.append(ShapeResult(label, first, skipped=reason))
            continue
        runs = {name: (lambda run=run, feed=feed: run(feed)) for name, run in contenders.items()}
        measured = interleaved(runs, rounds=possible, warmup=1, progress=progress, text=f"measure {label}")
        ratios = {name: measured.ratio(name, first) for name in contenders if name != first}
        results.append(ShapeResult(label, first, measured.timings, ratios))
    return results


def shaped_feed(samples: Samples, shape: str) -> tuple[dict[str, np.ndarray], str]:
    """A feed of ``shape`` made from ``samples``, without padding, and its label such as ``1×17 (natural)``.

    The sample of median length is repeated along its first axis up to the length; an input without one stays.

    Raises:
        UsageError: the shape is not ``<batch>x<length>`` or ``<batch>xnatural``.
    """
    match = _SHAPE.fullmatch(shape)
    if match is None or int(match[1]) < 1 or match[2] == "0":
        raise UsageError(
            f"cannot read shape {shape!r}: expected <batch>x<length>, such as 8x128 or 1xnatural"
        )
    order = samples.order(by_length=True)
    sample = samples.feeds[order[len(order) // 2]]
    own = max((array.shape[0] for array in sample.values() if array.ndim), default=0)
    length = own if match[2] == "natural" else int(match[2])
    label = f"{match[1]}×{length}" + (" (natural)" if match[2] == "natural" else "")
    feed = {
        name: np.stack([_stretched(array, own, length)] * int(match[1])) for name, array in sample.items()
    }
    return feed, label


def _stretched(array: np.ndarray, own: int, length: int) -> np.ndarray:
    if not array.ndim or array.shape[0] != own or own == length:
        return array
    repeats = -(-length // own)
    return np.concatenate([array] * repeats)[:length]


def _first_runs(contenders: Mapping[str, Run], feed: Mapping[str, np.ndarray]) -> tuple[float, str]:
    """Seconds that one run of each took, and why one did not run, or an empty text."""
    start = time.perf_counter()
    for name, run in contenders.items():
        try:
            run(feed)
        except runtime_errors(GraphCompressError) as error:
            return 0.0, f"{name} does not run at this shape ({first_line(error)})"
    return time.perf_counter() - start, ""
