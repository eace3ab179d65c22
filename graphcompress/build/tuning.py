"""Measures, for the models of a user, what a target chooses between, and writes it as a profile."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from graphcompress.capturing.source import open_model
from graphcompress.data.load import Samples, load_samples
from graphcompress.measure.cache import MeasurementCache
from graphcompress.measure.profile import Recorder
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.base import Target
from graphcompress.plugin.context import Context, Progress, no_progress

Times = Mapping[str, Mapping[str, Sequence[float]]]


def tune(
    models: Sequence[Path],
    target: Target,
    pipelines: Sequence[Pipeline],
    *,
    data: Path | None = None,
    tokenizer: Path | None = None,
    max_length: int | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Times:
    """Times of all that passes and ``target`` would choose between in ``models``, for each of ``pipelines``.

    Only sizes and operators matter for speed, so contracts are not enforced here.

    Raises:
        GraphCompressError: a model that cannot be read or run, or a target that measures nothing.
    """
    found: dict[str, Mapping[str, Sequence[float]]] = {}
    for path in models:
        samples: Samples | None = None
        if data:
            samples = load_samples(data, open_model(path), tokenizer=tokenizer, max_length=max_length)
        for pipeline in pipelines:
            model = open_model(path)
            asked = Recorder(MeasurementCache())
            ctx = Context(samples, target.capabilities, seed, progress, measurements=asked)
            pipeline.run(model, ctx, allow=[step.name for step in pipeline.passes])
            found.update(asked.times)
            found.update(target.tune(model, ctx))
    return found
