"""Measures, for the models of a user, what a target chooses between, and writes it as a profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from graphcompress.capturing.source import open_model
from graphcompress.data.load import Samples, load_samples
from graphcompress.errors import UsageError
from graphcompress.measure.shapes import Shape, parse_shapes
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.base import Context, Progress, Target, no_progress

Times = Mapping[str, Mapping[str, Sequence[float]]]


def measured_shapes(target: Target) -> list[Shape]:
    """The shapes in the option ``shapes`` of ``target``; called before any work.

    Raises:
        UsageError: the target chooses nothing by measuring, or has no such option.
    """
    if not target.measures:
        raise UsageError(f"target {target.name} measures nothing; tune is for targets that do, such as cpu")
    if not hasattr(target, "shapes"):
        raise UsageError(f"target {target.name} has no option shapes, at which a profile is measured")
    return parse_shapes(str(target.shapes))


def tune(
    models: Sequence[Path],
    target: Target,
    pipelines: Sequence[Pipeline],
    *,
    data: Path | None = None,
    tokenizer: Path | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Times:
    """Times of all that ``target`` would choose between in ``models`` after each of ``pipelines``.

    Only sizes and operators matter for speed, so contracts are not enforced here.

    Raises:
        GraphCompressError: a model that cannot be read or run, or a target that measures nothing.
    """
    found: dict[str, Mapping[str, Sequence[float]]] = {}
    for path in models:
        for pipeline in pipelines:
            model = open_model(path)
            samples: Samples | None = load_samples(data, model, tokenizer=tokenizer) if data else None
            ctx = Context(samples, target.capabilities, seed, progress)
            pipeline.run(model, ctx, allow=[step.name for step in pipeline.passes])
            found.update(target.tune(model, ctx))
    return found
