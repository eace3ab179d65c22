"""Chooses the form of every site by measuring on this machine, and rewrites the model accordingly."""

from __future__ import annotations

import logging
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphcompress.base import Context, Progress, no_progress
from graphcompress.data import synthetic_samples
from graphcompress.errors import UnsupportedModelError
from graphcompress.forms.cache import MeasurementCache
from graphcompress.forms.family import UNCHANGED, Family, Site
from graphcompress.measure import interleaved
from graphcompress.model import Model
from graphcompress.rewrite import Rewriter
from graphcompress.runtime import Feed, Runner

_LOG = logging.getLogger(__name__)

MARGIN = 1.03
"""A form other than the default is taken when it is at least this many times as fast."""

TOLERANCE = 1e-4
"""Largest difference between two forms of a site, in units of the largest output."""

ROUNDS = 5

Shape = tuple[int, int]
"""Batch and sequence length."""


@dataclass(frozen=True)
class Choice:
    """The form that the sites of one signature were given.

    Attributes:
        family: of forms.
        form: its name.
        sites: how many.
        times_ms: form → milliseconds, geometric mean over the shapes; empty when nothing was measured.
    """

    family: str
    form: str
    sites: int
    times_ms: Mapping[str, float]


def choose_forms(
    model: Model,
    families: Sequence[Family],
    shapes: Sequence[Shape],
    ctx: Context,
    *,
    cache: MeasurementCache | None,
    progress: Progress = no_progress,
) -> list[Choice]:
    """Give every site of ``model`` the form that is fastest here, family after family.

    Without ``cache`` nothing is measured, and the default forms are taken. Sites that differ only in weights
    are measured once. A form that does not compute the same, or that the runtime refuses, is not taken.
    """
    feeds = [_feed(model, shape, ctx.seed) for shape in shapes] if cache is not None else []
    choices = []
    for number, family in enumerate(families):
        progress("choose operator forms", number, len(families))
        choices.extend(_choose_family(model, family, feeds, ctx, cache))
    progress("choose operator forms", len(families), len(families))
    return choices


def _choose_family(
    model: Model, family: Family, feeds: Sequence[Feed], ctx: Context, cache: MeasurementCache | None
) -> list[Choice]:
    groups: dict[str, list[Site]] = {}
    for site in family.sites(model):
        groups.setdefault(site.signature(), []).append(site)
    choices = []
    chosen: list[tuple[Site, str]] = []
    for signature, sites in groups.items():
        times = _times(model, family, signature, sites[0], feeds, cache) if cache is not None else {}
        form = fastest(times, family.default)
        choices.append(Choice(family.name, form, len(sites), times))
        chosen.extend((site, form) for site in sites)
    with Rewriter(model, ctx) as rw:
        for site, form in chosen:
            if form != UNCHANGED:
                family.forms[form](rw, site)
    return choices


def fastest(times_ms: Mapping[str, float], default: str) -> str:
    """The fastest form; the default when nothing was measured, or when no other is faster by the margin."""
    if not times_ms:
        return default
    standing = default if default in times_ms else UNCHANGED
    best = min(times_ms, key=lambda form: (times_ms[form], form))
    return best if times_ms[standing] >= MARGIN * times_ms[best] else standing


def _times(
    model: Model, family: Family, signature: str, site: Site, feeds: Sequence[Feed], cache: MeasurementCache
) -> Mapping[str, float]:
    shapes = ",".join("x".join(map(str, next(iter(feed.values())).shape)) for feed in feeds)
    key = f"{family.name} {signature} {shapes}"
    kept = cache.get(key)
    if kept is not None and set(kept) <= {UNCHANGED, *family.forms} and UNCHANGED in kept:
        return kept
    with Runner(model, site.inputs) as runner:
        inside = [runner(feed) for feed in feeds]
    times = measure_forms(site.extract(model), family, inside)
    cache.put(key, times)
    return times


def measure_forms(alone: Model, family: Family, feeds: Sequence[Feed]) -> dict[str, float]:
    """Milliseconds of every form of the site that is the whole of ``alone``: geometric mean over ``feeds``.

    Forms that are refused by the runtime or give other outputs are left out.
    """
    candidates: dict[str, Runner] = {UNCHANGED: Runner(alone)}
    try:
        expected = [candidates[UNCHANGED](feed) for feed in feeds]
        for name in family.forms:
            runner = _candidate(alone, family, name)
            if runner is None:
                continue
            candidates[name] = runner
            if not _same(expected, [runner(feed) for feed in feeds]):
                _LOG.warning("form %s of %s gives other outputs and is not taken", name, family.name)
                del candidates[name]
        return _geometric_means(candidates, feeds)
    finally:
        for runner in candidates.values():
            runner.__exit__()


def _candidate(alone: Model, family: Family, form: str) -> Runner | None:
    twin = alone.clone()
    with Rewriter(twin, Context()) as rw:
        for site in family.sites(twin):
            family.forms[form](rw, site)
    try:
        return Runner(twin)
    except UnsupportedModelError as error:
        _LOG.info("form %s of %s is refused: %s", form, family.name, error)
        return None


def _geometric_means(candidates: Mapping[str, Runner], feeds: Sequence[Feed]) -> dict[str, float]:
    logs = dict.fromkeys(candidates, 0.0)
    for feed in feeds:
        runs = {name: _run(runner, feed) for name, runner in candidates.items()}
        measurement = interleaved(runs, rounds=ROUNDS, warmup=2)
        for name in candidates:
            relative = 1.0 / measurement.ratio(name, to=UNCHANGED).median
            logs[name] += math.log(relative * measurement.timings[UNCHANGED].median_ms)
    return {name: round(math.exp(total / len(feeds)), 5) for name, total in logs.items()}


def _run(runner: Runner, feed: Feed) -> Callable[[], object]:
    return lambda: runner(feed)


def _same(expected: Sequence[Feed], seen: Sequence[Feed]) -> bool:
    for before, after in zip(expected, seen, strict=True):
        for name, array in before.items():
            other = after[name]
            if other.shape != array.shape or other.dtype != array.dtype:
                return False
            if array.size and np.max(np.abs(other - array)) > TOLERANCE * max(np.max(np.abs(array)), 1e-6):
                return False
    return True


def _feed(model: Model, shape: Shape, seed: int) -> Feed:
    batch, length = shape
    samples = synthetic_samples(model, count=batch, length=length, seed=seed)
    return samples.batch(range(batch))
