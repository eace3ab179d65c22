"""A model in its forms, and the promise about speed: forms that slow the whole down are taken back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphcompress.errors import DataError, SpeedError
from graphcompress.files.temporary import Temporary
from graphcompress.graph.model import Model
from graphcompress.measure.cache import Measurements, Times
from graphcompress.measure.shapes import Shape
from graphcompress.measure.timing import is_slower
from graphcompress.plugin.context import Context
from graphcompress.targets.common.family import UNCHANGED, Family
from graphcompress.targets.common.form_choice import ChosenForm, choose_forms, shaped_feeds
from graphcompress.targets.cpu.file_comparison import Opener, Timer, compare_files, on_cpu, timed
from graphcompress.targets.cpu.padding_choice import KEEP

INPUT, ARTIFACT = "input", "artifact"


@dataclass(frozen=True)
class FormedModel:
    """A model in its forms.

    Attributes:
        model: in the forms of ``choices``.
        choices: one for every kind of site.
        taken_back: families whose forms made the whole model slower.
        notes: what else was done, for the report.
        padding: whether it is kept or removed.
    """

    model: Model
    choices: tuple[ChosenForm, ...]
    taken_back: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    padding: str = KEEP


def give_forms(
    legal: Model,
    families: Sequence[Family[Any]],
    shapes: Sequence[Shape],
    ctx: Context,
    cache: Measurements | None,
    taken_back: tuple[str, ...] = (),
) -> FormedModel:
    """A copy of ``legal`` in the forms of ``families``, without those of the families ``taken_back``."""
    model = legal.clone()
    chosen = [family for family in families if family.name not in taken_back]
    choices = choose_forms(model, chosen, shapes, ctx, cache=cache, progress=ctx.progress)
    return FormedModel(model, tuple(choices), taken_back)


def take_back(
    legal: Model,
    first: FormedModel,
    families: Sequence[Family[Any]],
    shapes: Sequence[Shape],
    ctx: Context,
    cache: Measurements,
    *,
    timer: Timer = timed,
) -> FormedModel:
    """``first`` without the families of forms that make the whole model slower, the last chosen first."""
    used = {choice.family for choice in first.choices if choice.form != UNCHANGED}
    feeds = shaped_feeds(legal, shapes, ctx.seed)
    kept = first
    with Temporary() as scratch:
        files = {"with": scratch / "with.onnx", "without": scratch / "without.onnx"}
        # The last chosen first: a family has been measured with the forms of those before it in place.
        for family in reversed([family.name for family in families if family.name in used]):
            without = give_forms(legal, families, shapes, ctx, cache, (*kept.taken_back, family))
            kept.model.save(files["with"])
            without.model.save(files["without"])
            times = compare_files(files, feeds, cache, subject="with", than="without", timer=timer)
            kept = without if is_slower(times, "with", "without") else kept
    return kept


def times_against_input(
    source: Path,
    artifact: Path,
    model: Model,
    shapes: Sequence[Shape],
    ctx: Context,
    cache: Measurements,
    *,
    opener: Opener = on_cpu,
    timer: Timer = timed,
) -> tuple[Times, str]:
    """Times of the file that came in and of the artifact's, which ``opener`` opens; or none, and why not."""
    feeds = shaped_feeds(model, shapes, ctx.seed)
    files = {INPUT: source, ARTIFACT: artifact}
    try:
        times = compare_files(
            files,
            feeds,
            cache,
            subject=ARTIFACT,
            than=INPUT,
            openers={ARTIFACT: opener},
            timer=timer,
            apart=True,
        )
        return times, ""
    except DataError as error:
        # An input that does not run at a shape is nothing to be slower than.
        return {}, str(error)


def refuse_slower(times_ms: Times, shapes: Sequence[Shape], option: str) -> None:
    """Fail when the artifact is slower than the input.

    Raises:
        SpeedError: it is; ``option`` is what allows it.
    """
    if not times_ms or not is_slower(times_ms, ARTIFACT, INPUT):
        return
    kinds = len(times_ms[INPUT]) // len(shapes)
    texts = [
        f"{batch}×{length}{' (a step with past)' if kind else ''}"
        for batch, length in shapes
        for kind in range(kinds)
    ]
    pairs = zip(texts, times_ms[INPUT], times_ms[ARTIFACT], strict=True)
    figures = ", ".join(f"{own:.2f} instead of {other:.2f} ms at {text}" for text, other, own in pairs)
    raise SpeedError(
        f"the artifact is slower than the model that came in ({figures}), in the fastest forms that were "
        f"found; the passes cost more time than they save here: leave some out, or accept it with {option}"
    )
