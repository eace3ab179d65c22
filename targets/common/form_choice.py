"""Chooses the form of every site by measuring on this machine, and rewrites the model accordingly."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import onnx_ir as ir

from graphcompress.data.made_up import synthetic_samples
from graphcompress.errors import DataError, UnsupportedModelError
from graphcompress.files.runtime import Feed
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.cache import Measurements, Times
from graphcompress.measure.shapes import Shape, feed_text
from graphcompress.measure.timing import (
    FORM_FLOOR,
    FORM_LEAST_ROUNDS,
    FORM_MARGIN,
    FORM_ROUNDS,
    FORM_TURN_SECONDS,
    SPIN_US,
    Measurement,
    turns,
)
from graphcompress.measure.verify import output_difference
from graphcompress.plugin.context import Context, Progress, no_progress
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.targets.common.family import UNCHANGED, Family, Site

_LOG = logging.getLogger(__name__)

TOLERANCE = 1e-4
"""Two forms of a site may differ by at most this share of the largest output: rounding in another order stays
far below it."""

_METHOD = 6
"""Part of the cache's keys; raise it when times are taken in another way."""


@dataclass(frozen=True)
class ChosenForm:
    """The form that the sites of one signature were given.

    Attributes:
        family: of forms.
        form: its name.
        sites: how many.
        times_ms: form → milliseconds at every shape; empty when nothing was measured.
        unmeasured: why there are no times although they were asked for, or an empty text.
        refused: form → why it was not taken: the runtime refuses it, or it gives other outputs.
        signature: of the sites.
    """

    family: str
    form: str
    sites: int
    times_ms: Times
    unmeasured: str = ""
    refused: Mapping[str, str] = field(default_factory=dict)
    signature: str = ""

    @property
    def record(self) -> dict[str, Any]:
        """As plain data, for the manifest."""
        known = asdict(self)
        return known if self.refused else {name: known[name] for name in known if name != "refused"}


def choose_forms(
    model: Model,
    families: Sequence[Family[Any]],
    shapes: Sequence[Shape],
    ctx: Context,
    *,
    cache: Measurements | None,
    progress: Progress = no_progress,
) -> list[ChosenForm]:
    """Give every site of ``model`` the form that is fastest here, family after family.

    Without ``cache`` nothing is measured, and the default forms are taken; so they are where a ``cache`` that
    is complete has no times. Sites that differ only in weights are measured once. A form that does not
    compute the same, or that the runtime refuses, is not taken.
    """
    feeds = shaped_feeds(model, shapes, ctx.seed) if cache is not None else []
    choices = []
    for number, family in enumerate(families):
        progress("choose operator forms", number, len(families))
        choices.extend(_choose_family(model, family, feeds, ctx, cache))
    progress("choose operator forms", len(families), len(families))
    return choices


def _choose_family(
    model: Model, family: Family[Any], feeds: Sequence[Feed], ctx: Context, cache: Measurements | None
) -> list[ChosenForm]:
    choices = []
    chosen: list[tuple[Site, str]] = []
    for signature, sites in _by_signature(model, family).items():
        # Sites of one signature differ in weights alone, so the first is timed for all.
        times, refused, unmeasured = (
            ({}, {}, "") if cache is None else _times(model, family, sites[0], feeds, cache)
        )
        form = fastest(times, family.default)
        choices.append(ChosenForm(family.name, form, len(sites), times, unmeasured, refused, signature))
        chosen.extend((site, form) for site in sites)
    # Rewriting comes after all choices: the sites describe the graph as it was when they were found.
    _rewrite(model, family, chosen, ctx)
    return choices


def take_forms(
    model: Model, families: Sequence[Family[Any]], forms: Mapping[tuple[str, str], str], ctx: Context
) -> None:
    """Give every site of ``model`` the form that ``forms`` has for its family and its signature.

    Raises:
        DataError: it has none for a site, or one that is unknown.
    """
    recorded = {name for name, _ in forms}
    for family in families:
        chosen: list[tuple[Site, str]] = []
        missing = UNCHANGED if family.came_later and family.name not in recorded else ""
        for signature, sites in _by_signature(model, family).items():
            form = forms.get((family.name, signature), missing)
            if form not in {UNCHANGED, *family.forms}:
                raise DataError(
                    f"the recipe has no form for {sites[0].name} ({family.name}): [pinned] is of another "
                    "version or from another model; remove [pinned] from the recipe to choose anew"
                )
            chosen.extend((site, form) for site in sites)
        _rewrite(model, family, chosen, ctx)


def _by_signature(model: Model, family: Family[Any]) -> dict[str, list[Site]]:
    groups: dict[str, list[Site]] = {}
    for site in family.sites(model):
        groups.setdefault(site.signature(), []).append(site)
    return groups


def _rewrite(model: Model, family: Family[Any], chosen: Sequence[tuple[Site, str]], ctx: Context) -> None:
    with Rewriter(model, ctx) as rw:
        for site, form in chosen:
            if form != UNCHANGED:
                family.forms[form](rw, site)


def fastest(times_ms: Times, default: str) -> str:
    """The form that is fastest on the whole and nowhere slower than the default.

    The default when nothing was measured or no other form is faster by the margin; the form that a site has
    already, where the default is refused or not the same.
    """
    if not times_ms:
        return default
    # A default without times was refused, or gives other outputs.
    standing = default if default in times_ms else UNCHANGED
    reference = np.array(times_ms[standing])
    # Sorted, so that a tie does not depend on the order in which the times were kept.
    speeds = {form: reference / np.array(ms) for form, ms in sorted(times_ms.items())}
    gains = {
        form: float(np.exp(np.log(speed).mean()))
        for form, speed in speeds.items()
        if speed.min() >= FORM_FLOOR
    }
    best = max(gains, key=lambda form: gains[form])
    return best if gains[best] >= FORM_MARGIN else standing


def _times(
    model: Model, family: Family[Any], site: Site, feeds: Sequence[Feed], cache: Measurements
) -> tuple[Times, Mapping[str, str], str]:
    """Times of the forms of ``site``, why a form has none, and why all have none.

    The cache keeps no reasons: where a form has no times there, it is tried again, and nothing is measured.
    """
    shapes = ",".join(map(feed_text, feeds))
    key = f"{_METHOD} {family.name}: {' '.join(family.forms)} {site.signature()} {shapes}"
    kept = cache.get(key)
    # The cache is a file that anybody may edit, or that another version has written.
    if kept is not None and not _fits(kept, family, len(feeds)):
        kept = None
    if cache.complete:
        return ({}, {}, "not in the profile") if kept is None else (kept, {}, "")
    if kept is not None and kept.keys() >= family.forms.keys():
        return kept, {}, ""
    try:
        times, refused = measure_forms(site.extract(model), family, _read_by(site, model, feeds), kept)
    except DataError as error:
        _LOG.warning("forms of %s are not measured: %s", family.name, error)
        return {}, {}, "the model does not run at these shapes"
    cache.put(key, times)
    return times, refused, ""


def _read_by(site: Site, model: Model, feeds: Sequence[Feed]) -> list[Feed]:
    """What ``site`` reads on ``feeds``; only what comes before it is run."""
    computed = [value for value in site.inputs if not value.is_graph_input()]
    if not computed:
        return [{value.name or "": feed[value.name or ""] for value in site.inputs} for feed in feeds]
    graph = ir.convenience.extract(model.graph, list(model.graph.inputs), computed)
    before = Model(ir.Model(graph, ir_version=model.ir.ir_version))
    needed = {value.name for value in graph.inputs}
    with Runner(before) as runner:
        found = [runner({name: array for name, array in feed.items() if name in needed}) for feed in feeds]
    given = [value.name or "" for value in site.inputs if value.is_graph_input()]
    return [
        {**inside, **{name: feed[name] for name in given}} for inside, feed in zip(found, feeds, strict=True)
    ]


def _fits(times: Times, family: Family[Any], shapes: int) -> bool:
    known = {UNCHANGED, *family.forms}
    return UNCHANGED in times and set(times) <= known and all(len(row) == shapes for row in times.values())


def measure_forms(
    alone: Model, family: Family[Any], feeds: Sequence[Feed], kept: Times | None = None
) -> tuple[Times, dict[str, str]]:
    """Milliseconds, for each of ``feeds``, of every form of the site that is the whole of ``alone``.

    Forms that the runtime refuses, or that give other outputs, have no times: the second result says why.
    With times that were ``kept`` nothing is measured.
    """
    with contextlib.ExitStack() as stack:
        unchanged = stack.enter_context(Runner(alone, prepack=True, spin_us=SPIN_US))
        expected = [unchanged(feed) for feed in feeds]
        runners, refused = {UNCHANGED: unchanged}, {}
        for form in family.forms:
            twin = _rewritten(alone, family, form)
            try:
                runner = stack.enter_context(Runner(twin, prepack=True, spin_us=SPIN_US))
                # This run also warms the session up for the timing.
                seen = [runner(feed) for feed in feeds]
            except (UnsupportedModelError, DataError) as error:  # of the runtime, as a Runner tells them
                refused[form] = str(error)
                continue
            if same_outputs(expected, seen):
                runners[form] = runner
            else:
                refused[form] = "it gives other outputs"
        return kept or _times_ms(runners, feeds, family.default), refused


def _rewritten(alone: Model, family: Family[Any], form: str) -> Model:
    twin = alone.clone()
    with Rewriter(twin, Context()) as rw:
        for site in family.sites(twin):
            family.forms[form](rw, site)
    return twin


def _times_ms(
    candidates: Mapping[str, Runner], feeds: Sequence[Feed], default: str
) -> dict[str, list[float]]:
    """Milliseconds of every candidate, which has run before, for each of ``feeds``.

    Other work on the machine only ever adds time, so what a form costs is the fast end of its rounds.
    """
    runs = [{name: _run(runner, feed) for name, runner in candidates.items()} for feed in feeds]
    seen: list[dict[str, list[float]]] = [{name: [] for name in candidates} for _ in feeds]
    rounds = [turns(shape, FORM_TURN_SECONDS) for shape in runs]
    for number in range(FORM_ROUNDS):
        # Shapes take turns as well, so that a burst of load does not fall on one of them alone.
        for times, source in zip(seen, rounds, strict=True):
            for name, ms in next(source).items():
                times[name].append(ms)
        if number + 1 >= FORM_LEAST_ROUNDS and _is_clear(seen, default):
            break
    return _fast_ends(seen)


def _fast_ends(seen: Sequence[Mapping[str, list[float]]]) -> dict[str, list[float]]:
    timings = [Measurement(times).timings for times in seen]
    return {name: [round(timing[name].low_ms, 5) for timing in timings] for name in seen[0]}


def _is_clear(seen: Sequence[Mapping[str, list[float]]], default: str) -> bool:
    """Whether the form to take is so by the median of its rounds too, against the fast end of all others'."""
    times = _fast_ends(seen)
    form = fastest(times, default)
    medians = [round(Measurement(shape).timings[form].median_ms, 5) for shape in seen]
    return fastest({**times, form: medians}, default) == form


def _run(runner: Runner, feed: Feed) -> Callable[[], object]:
    return lambda: runner(feed)


def same_outputs(expected: Sequence[Feed], seen: Sequence[Feed]) -> bool:
    """Whether all outputs are of one type and equal up to ``TOLERANCE``; NaN in one alone is a difference."""
    return all(
        after[name].shape == array.shape
        and after[name].dtype == array.dtype
        and output_difference(name, array, after[name]).max_relative_error <= TOLERANCE
        for before, after in zip(expected, seen, strict=True)
        for name, array in before.items()
    )


def shaped_feeds(model: Model, shapes: Sequence[Shape], seed: int) -> list[Feed]:
    """A made-up feed of every shape; a model with fewer positions gets as many as it has.

    A file that reads the first tokens of a text and takes the steps after them gets a feed for either: the
    tokens at once, with no past, and one token with as many before it.
    """
    feeds: list[Feed] = []
    for batch, length in shapes:
        samples = synthetic_samples(model, count=batch, length=length, seed=seed)
        for kind in range(samples.per_row):
            feeds.append(samples.batch(range(kind, len(samples), samples.per_row)[:batch]))
    return feeds
