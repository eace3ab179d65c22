"""How fast models write, side by side: tokens a second, time to the first token, time in every part."""

from __future__ import annotations

import dataclasses
import functools
import math
import re
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphcompress.errors import UsageError
from graphcompress.files.runtime import Feed
from graphcompress.generation.generator import Generator, Prompt
from graphcompress.measure.bench import WRITTEN, ShapeResult
from graphcompress.measure.timing import (
    BENCH_ROUNDS,
    FEWEST_ROUNDS,
    RUNS_PER_ROUND,
    Ratio,
    Timing,
    interleaved,
)
from graphcompress.plugin.context import Progress, no_progress

PROMPT_TOKENS = 16
"""Tokens of a made-up prompt: a sentence."""

_SHAPE = re.compile(r"(\d+)x(\d+)")


@dataclass(frozen=True)
class WritingSpeed:
    """How fast one model writes.

    Attributes:
        timing: of a whole batch, from the prompts to the last token.
        tokens_per_second: new tokens of all rows together, by the median time.
        first_token_ms: median time until every row has its first token.
        parts_ms: role of a part → median time that all its runs in one batch take together.
    """

    timing: Timing
    tokens_per_second: float
    first_token_ms: float
    parts_ms: Mapping[str, float]


@dataclass(frozen=True)
class WritingResult:
    """Speeds at one shape; ratios say how many times as fast each contender is as the first one.

    Attributes:
        shape: batch and new tokens, such as ``8×32``.
        first: the contender that the others are compared with.
        speeds: per contender.
        ratios: per contender but the first.
        skipped: why nothing was measured, or an empty text.
    """

    shape: str
    first: str
    speeds: Mapping[str, WritingSpeed]
    ratios: Mapping[str, Ratio]
    skipped: str = ""

    def as_shape(self) -> ShapeResult:
        """The same as times of runs are told."""
        timings = {name: speed.timing for name, speed in self.speeds.items()}
        return ShapeResult(f"{self.shape}{WRITTEN}", self.first, timings, self.ratios, self.skipped)


def bench_writing(
    contenders: Mapping[str, Generator],
    shapes: Sequence[str],
    *,
    prompts: Sequence[Prompt] = (),
    rounds: int = BENCH_ROUNDS,
    seconds: float = math.inf,
    seed: int = 0,
    progress: Progress = no_progress,
) -> list[WritingResult]:
    """Time ``contenders`` in turns at ``shapes``: ``<batch>x<new tokens>``.

    All write so many tokens and never end before, with the beams of their settings. ``prompts`` are those of
    the first contender; without any they are made up. A shape is given fewer rounds where ``rounds`` would
    take more than ``seconds``, and is skipped where three would.

    Raises:
        UsageError: a shape that does not read.
        DataError: prompts and new tokens are more than the positions of a model.
    """
    first = next(iter(contenders))
    sizes = [_size(shape) for shape in shapes]
    given = prompts or [_made_up(contenders[first], seed)]
    results = []
    for batch, tokens in sizes:
        chosen = [_median(given)] * batch
        clocks = {name: Stopwatch(generator, tokens) for name, generator in contenders.items()}
        runs = {name: functools.partial(clock.write, chosen) for name, clock in clocks.items()}
        label = f"{batch}×{tokens}"
        took = sum(map(_seconds, runs.values())) if math.isfinite(seconds) else 0.0
        possible = int(min(rounds, seconds / (RUNS_PER_ROUND * took))) if took else rounds
        if possible < min(rounds, FEWEST_ROUNDS):
            reason = f"to write takes {took:.2g} s; time it with graphcompress bench --generate"
            results.append(WritingResult(label, first, {}, {}, reason))
            continue
        measured = interleaved(runs, rounds=possible, warmup=1, progress=progress, text=f"measure {label}")
        speeds = {name: clocks[name].speed(timing, batch) for name, timing in measured.timings.items()}
        ratios = {name: measured.ratio(name, first) for name in contenders if name != first}
        results.append(WritingResult(label, first, speeds, ratios))
    return results


class Stopwatch:
    """A model that always writes a number of tokens, and the times of its runs."""

    def __init__(self, generator: Generator, tokens: int) -> None:
        self._tokens = tokens
        self._taken: list[tuple[str, float, float]] = []
        self._batches: list[tuple[float, dict[str, float]]] = []
        runs = {role: self._timed(role, run) for role, run in generator.runs.items()}
        settings = dataclasses.replace(
            generator.settings, max_new_tokens=tokens, eos_token_id=(), forced_eos_token_id=()
        )
        self._generator = dataclasses.replace(generator, runs=runs, settings=settings)

    def write(self, prompts: Sequence[Prompt]) -> None:
        """Answer ``prompts`` as one batch."""
        self._taken.clear()
        began = time.perf_counter()
        self._generator.ids(prompts, batch=len(prompts))
        roles = dict.fromkeys(role for role, _, _ in self._taken)
        spent = {role: sum(ms for other, ms, _ in self._taken if other == role) for role in roles}
        decoded = next(end for role, _, end in self._taken if role != "encoder")
        self._batches.append((1000.0 * (decoded - began), spent))

    def speed(self, timing: Timing, batch: int) -> WritingSpeed:
        """What the runs so far come to."""
        firsts, spent = zip(*self._batches, strict=True)
        parts = {role: float(np.median([one[role] for one in spent])) for role in spent[0]}
        rate = 1000.0 * batch * self._tokens / timing.median_ms
        return WritingSpeed(timing, rate, float(np.median(firsts)), parts)

    def _timed(
        self, role: str, run: Callable[[Feed], Mapping[str, np.ndarray]]
    ) -> Callable[[Feed], Mapping[str, np.ndarray]]:
        def timed(feed: Feed) -> Mapping[str, np.ndarray]:
            began = time.perf_counter()
            found = run(feed)
            ended = time.perf_counter()
            self._taken.append((role, 1000.0 * (ended - began), ended))
            return found

        return timed


def _seconds(run: Callable[[], object]) -> float:
    began = time.perf_counter()
    run()
    return time.perf_counter() - began


def _size(shape: str) -> tuple[int, int]:
    match = _SHAPE.fullmatch(shape)
    if match is None or int(match[1]) < 1 or int(match[2]) < 1:
        raise UsageError(f"cannot read shape {shape!r}: expected <batch>x<new tokens>, such as 8x32")
    return int(match[1]), int(match[2])


def _median(prompts: Sequence[Prompt]) -> Prompt:
    """The prompt of median length."""
    ordered = sorted(prompts, key=lambda prompt: len(next(iter(prompt.values()))))
    return ordered[len(ordered) // 2]


def _made_up(generator: Generator, seed: int) -> Prompt:
    """Random ids, or random numbers of the sizes that the encoder fixes."""
    rng = np.random.default_rng(seed)
    found: dict[str, np.ndarray] = {}
    for port in generator.parts[0].inputs:
        if port.kind == "ids":
            found[port.name] = rng.integers(0, _vocabulary(generator), PROMPT_TOKENS)
        elif port.kind == "other":
            sizes = [size if isinstance(size, int) else PROMPT_TOKENS for size in port.shape[1:]]
            found[port.name] = rng.standard_normal(sizes).astype(port.dtype)
    return found


def _vocabulary(generator: Generator) -> int:
    """Tokens that every part knows: as many as there are logits; few where the file does not say."""
    sizes = [port.shape[-1] for part in generator.parts for port in part.returns("logits") if port.shape]
    return min([size for size in sizes if isinstance(size, int)], default=PROMPT_TOKENS)
