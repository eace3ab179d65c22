"""Times the artifacts of a build, and holds them against its goals."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from graphcompress.artifact.sequences import artifact_run, fitted_run, source_run
from graphcompress.build.goals import CheckedGoal, refuse_missed, size_goal, slowest, speed_goal
from graphcompress.build.request import Request
from graphcompress.build.result import Artifact, Build
from graphcompress.data.made_up import synthetic_samples
from graphcompress.files.runtime import runner_of, session_of
from graphcompress.measure.bench import ShapeResult, bench
from graphcompress.measure.timing import BENCH_SECONDS
from graphcompress.plugin.context import Progress, no_progress
from graphcompress.plugin.targeting import parse_target
from graphcompress.reporting.summary import contender


def judged(request: Request, build: Build, folders: Mapping[str, Path]) -> Build:
    """``build``, whose artifacts lie in ``folders``, with its goals, all of which are met.

    Raises:
        GoalError: one is not.
    """
    benched = timed(build, folders, progress=request.progress) if request.min_speedup else []
    goals = {artifact.name: _goals(request, build, artifact, benched) for artifact in build.lowered}
    for artifact in build.lowered:
        refuse_missed(artifact.name, goals[artifact.name], slowest(contender(build, artifact), benched))
    return replace(build, goals=goals, benched=benched)


def _goals(
    request: Request, build: Build, artifact: Artifact, benched: Sequence[ShapeResult]
) -> list[CheckedGoal]:
    found = []
    if request.allowed_drop is not None and artifact.drop is not None:
        found.append(request.allowed_drop.goal(artifact.drop))
    if request.min_speedup:
        found.append(speed_goal(request.min_speedup, contender(build, artifact), benched))
    if request.max_size is not None:
        found.append(size_goal(request.max_size, artifact))
    return found


def timed(
    build: Build, folders: Mapping[str, Path], *, progress: Progress = no_progress
) -> list[ShapeResult]:
    """Times of the model that came in and of the artifacts in ``folders``, those that this machine runs."""
    read = build.model.path if build.model else None
    artifacts = [artifact for artifact in build.lowered if artifact.timed]
    if not artifacts or read is None or build.model is None:
        return []
    source = build.model.source or read
    contenders = {"before": source_run(source) if source.is_dir() else runner_of(session_of(read))}
    for artifact in artifacts:
        target, folder = parse_target(artifact.target), folders[artifact.name]
        run = artifact_run(target, folder, artifact.record)
        contenders[contender(build, artifact)] = fitted_run(build.model, run)
    # Samples that are made up to compare outputs differ in every size, so that most of a batch is padding.
    made_up = build.samples.synthetic and not build.model.parts
    samples = synthetic_samples(build.model) if made_up else build.samples
    return bench(contenders, samples, seconds=BENCH_SECONDS, progress=progress)
