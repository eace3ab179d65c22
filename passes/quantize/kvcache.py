"""kvcache: keys and values of earlier tokens are kept in 8 bits."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np

from graphcompress.data.lengths import longest_sample
from graphcompress.data.made_up import synthetic_samples, varied_samples
from graphcompress.errors import DataError
from graphcompress.files.runtime import Feed, runner_of, session_of
from graphcompress.graph.float_cache import Run, cache_grids
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.latency.table import signature
from graphcompress.measure.cache import MeasurementCache, Times
from graphcompress.measure.calibrate import equal_feeds
from graphcompress.measure.timing import REPETITIONS, SLOWER, SPIN_US, interleaved
from graphcompress.passes.quantize.caches import Cache, caches, write_int8
from graphcompress.plugin.base import Pass
from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.context import Context
from graphcompress.plugin.contract import Contract, Lossy
from graphcompress.plugin.options import option
from graphcompress.plugin.record import Record
from graphcompress.plugin.schemes import INT8_CACHE
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.training.processes import processes

ROUNDS = 10
"""Rounds in which a step with a cache in floats and one with a cache in int8 take turns."""

FLOAT, INT8 = "cache in float32", "cache in int8"


@dataclass(frozen=True)
class KvCache(Pass):
    """Keep keys and values of earlier tokens in 8 bits, where a step is not slower with them.

    New keys and values are rounded as they come into the cache, and all of them become floats again in front
    of attention. Each head of each layer has a scale of its own, calibrated on samples as generation sees
    them; numbers are symmetric. A cache is a quarter as large then: what a long text, or many texts at once,
    need memory for. Steps after ``length`` tokens are timed with both caches in turns on this machine; where
    those in 8 bits are slower, the cache stays in float32, and the record says the times.

    Callers give and get keys and values in int8. They begin with none, in the type that the file declares,
    and hand on what they are given, so that nobody else needs the scales. Loaders that make an empty cache in
    floats, as transformers.js and optimum do, cannot run such a file.

    Left alone, and listed with the reason: states of recurrent layers, which are no list of tokens, caches in
    half precision, and models without a cache.
    """

    name: ClassVar[str] = "kvcache"
    also_called: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(
            ("kv", "cache", "kv8", "kv_cache", "kvquant", "quantized_cache", "kv_int8"), "kvcache"
        )
    }
    changes_weights: ClassVar[bool] = False
    contract: ClassVar[Contract] = Lossy(min_sqnr_db=15.0, max_divergence=0.02)

    length: int = option(
        512,
        "tokens before the step that is timed; fewer where the model has fewer positions",
        unit="tokens",
        minimum=1,
    )
    samples: int = option(300, "calibration samples used, at most", minimum=1)
    measure: bool = option(True, "time a step with both caches; false takes int8 without")

    def unsupported(self, capabilities: Capabilities, *, calibrated: bool) -> str | None:
        """A target whose callers make empty caches in floats."""
        if capabilities.choose([INT8_CACHE]):
            return None
        return "a cache in int8, which its loaders make in floats; leave kvcache out, or build it for cpu"

    def run(self, model: Model, ctx: Context) -> Record:
        """Calibrate, time a copy, and write it where that is not slower."""
        with Rewriter(model, ctx) as rw:
            found = self._roundable(rw)
            if not found:
                whole = (
                    ""
                    if model.parts
                    else "; give the folder with all parts of the model, if this is one of them"
                )
                rw.note(f"there are no keys and values of earlier tokens that could be rounded{whole}")
                return rw.record
            scales = self._scales(rw, found)
            if self.measure and self._is_slower(rw, scales):
                return rw.record
            self._write(rw, scales)
            entries = sum(cache.entries for cache in found if cache.grows)
            rw.note(f"keys and values of a token take {entries:,} bytes instead of {4 * entries:,}")
        return rw.record

    def _roundable(self, rw: Rewriter) -> list[Cache]:
        found = []
        for cache in caches(rw.model):
            reason = cache.reason()
            if reason is None:
                found.append(cache)
            else:
                rw.skip(cache.name, reason)
        return found

    def _scales(self, rw: Rewriter, found: Sequence[Cache]) -> dict[str, np.ndarray]:
        """Name of a cache → its scale for each head: the largest number that was seen becomes 127 steps."""
        samples = rw.ctx.samples
        if samples is None or samples.synthetic:
            rw.note("ranges of keys and values come from made-up samples; give yours with --data")
            samples = varied_samples(rw.model, seed=rw.ctx.seed)
        peaks: dict[str, np.ndarray] = {}
        present = {value.name or "": cache for cache in found for value in cache.present}
        outputs = [value for cache in found for value in cache.present]
        with Runner(rw.model, outputs, lent=True) as runner:
            feeds = equal_feeds(rw.model, samples.first(-(-self.samples // samples.per_row)))
            for number, feed in enumerate(feeds):
                rw.ctx.progress("calibrate the cache", number, len(feeds))
                for name, array in runner(feed).items():
                    cache = present[name]
                    axes = tuple(axis for axis in range(array.ndim) if axis != cache.axis)
                    # A row of padding alone may hold NaN, which nobody reads.
                    peak = np.abs(array).max(axes, initial=0.0, where=np.isfinite(array))
                    peaks[cache.name] = np.maximum(peaks.get(cache.name, peak), peak)
        return {name: np.maximum(peak, np.float32(1e-6)) / np.float32(127) for name, peak in peaks.items()}

    def _write(self, rw: Rewriter, scales: Mapping[str, np.ndarray]) -> None:
        for cache in caches(rw.model):
            if cache.name in scales:
                rw.touch(cache.name)
                write_int8(rw, cache, scales[cache.name])

    def _is_slower(self, rw: Rewriter, scales: Mapping[str, np.ndarray]) -> bool:
        """Whether a step is slower with a cache in int8; both times are told, and what is skipped for it."""
        pinned = rw.ctx.pinned.get(str(self))
        if pinned is None and processes() > 1:
            from graphcompress.training.group import of_first_process

            pinned = of_first_process(lambda: self._measured(rw, scales))
        rw.plan = self._measured(rw, scales) if pinned is None else pinned
        slower, told = _planned(rw.plan)
        if slower:
            for name in scales:
                rw.skip(name, "in int8 it would make a step slower")
        rw.note(told)
        return slower

    def _measured(self, rw: Rewriter, scales: Mapping[str, np.ndarray]) -> str:
        """What both take, as text."""
        twin = rw.model.clone()
        with Rewriter(twin, rw.ctx) as other:
            self._write(other, scales)
        steps = (one for part, one in rw.model.separate() if part.reads("past"))
        length = min([self.length, *(longest - 1 for longest in map(longest_sample, steps) if longest)])
        times = step_times({FLOAT: rw.model, INT8: twin}, length, rw.ctx)
        ms = {name: row[-1] for name, row in times.items()}
        figures = f"{ms[INT8]:.2f} ms with the {INT8}, {ms[FLOAT]:.2f} ms with the {FLOAT}"
        told = f"a step after {length} tokens takes {figures}"
        slower = _is_slower(times)
        told += f": the {FLOAT} stays, for it is faster" if slower else ""
        return json.dumps({"slower": slower, "told": told})


def _planned(plan: str) -> tuple[bool, str]:
    """What was measured: whether int8 is slower, and the note.

    Raises:
        DataError: the text is of another version.
    """
    try:
        known = json.loads(plan)
        return bool(known["slower"]), str(known["told"])
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(
            f"kvcache: [pinned] in the recipe is of another version ({error}); "
            "remove [pinned] from the recipe to choose anew"
        ) from error


def step_times(models: Mapping[str, Model], length: int, ctx: Context) -> Times:
    """Milliseconds of a step of one token after ``length`` others, of each of ``models``, in turns.

    A measurement in which int8 is slower is repeated: the last one counts, for all before it were alike.
    """
    store = ctx.measurements or MeasurementCache()
    key = f"step after {length} {' '.join(signature(model) for model in models.values())}"
    known = store.get(key)
    if known is not None:
        return known
    steps = {name: step_of(model, length, seed=ctx.seed) for name, model in models.items()}
    runs = {name: partial(run, feed) for name, (run, feed) in steps.items()}
    seen: dict[str, list[float]] = {FLOAT: [], INT8: []}
    for _ in range(REPETITIONS):
        measured = interleaved(runs, rounds=ROUNDS, progress=ctx.progress, text="measure the cache")
        for name, timing in measured.timings.items():
            seen[name].append(timing.median_ms)
        if not _is_slower(seen):
            break
    store.put(key, seen)
    return seen


def _is_slower(times: Times) -> bool:
    """Whether int8 is slower by more than noise. A text has many steps, so that however short ones count."""
    return times[FLOAT][-1] < SLOWER * times[INT8][-1]


def step_of(model: Model, length: int, *, batch: int = 1, seed: int = 0) -> tuple[Run, Feed]:
    """The part of ``model`` that takes steps, and a feed of it: one made-up token after ``length`` others."""
    samples = synthetic_samples(model, count=batch, length=length, seed=seed)
    # Where one file does everything, a first pass lies in front of each step.
    whole = samples.batch(range(samples.per_row - 1, len(samples), samples.per_row))
    part, step = next((part, one) for part, one in model.separate() if part.reads("past"))
    own = {value.name: whole[part.prefix + value.name] for value in part.inputs}
    grids = cache_grids(step.graph)
    rounded = {name: grids[name].rounded(array) if name in grids else array for name, array in own.items()}
    written = step.in_place()
    return runner_of(session_of(written.proto, weights=written.weights, spin_us=SPIN_US)), rounded
