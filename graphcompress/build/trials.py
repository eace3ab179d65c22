"""What passes may ask of a model on trial: how much its metric drops, and how fast its artifact is."""

from __future__ import annotations

from dataclasses import replace

from graphcompress.build.baseline import Baseline
from graphcompress.build.measuring import artifact_speed
from graphcompress.build.opened_writers import written_by
from graphcompress.build.request import Request
from graphcompress.generation.generator import Generator
from graphcompress.graph.model import Model
from graphcompress.measure.metrics import Scoring
from graphcompress.measure.verify import Run
from graphcompress.plugin.context import Context

TRIAL = "evaluate a trial"
"""What the progress calls it."""


def with_metric(ctx: Context, scoring: Scoring, request: Request, generator: Generator | None) -> Context:
    """``ctx``, whose passes may ask what a plan costs in the metric.

    A metric of written texts is asked of a whole model alone: it writes as ``generator`` does.
    """
    if generator is None:
        ctx = replace(ctx, drop=lambda run: scoring.judged(run, TRIAL)[1].value)
    allowed = request.allowed_drop
    if allowed is None:
        return ctx

    def spent(model: Model, run: Run) -> float:
        if generator is None:
            return allowed.spent(scoring.judged(run, TRIAL)[1])
        with written_by(model, generator, optimize=ctx.capabilities.judged_fused) as writer:
            return allowed.spent(scoring.judged(writer, TRIAL)[1])

    return replace(ctx, spent=spent)


def with_speed(ctx: Context, request: Request, baseline: Baseline) -> Context:
    """``ctx``, whose passes may ask how fast the artifact of a model is, where this machine runs it."""
    target = next((target for target in request.targets if target.timed), None)
    if baseline.file is None or target is None:
        return ctx
    return replace(ctx, speed=artifact_speed(baseline.file, target, baseline.samples, ctx))
