"""Holds the artifacts of a build against its goals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from graphcompress.build.goals import CheckedGoal, refuse_missed, size_goal, slowest, speed_goal
from graphcompress.build.request import Request
from graphcompress.build.result import Artifact, Build
from graphcompress.measure.bench import ShapeResult
from graphcompress.reporting.summary import contender
from graphcompress.training.checkpoint_folder import has_checkpoints


def judged(request: Request, build: Build) -> Build:
    """``build`` with its goals, all of which are met.

    Raises:
        GoalError: one is not.
    """
    goals = {artifact.name: _goals(request, build, artifact, build.benched) for artifact in build.lowered}
    kept = request.training_folder if request.pipeline.trains else None
    kept = kept if kept is not None and has_checkpoints(kept) else None
    for artifact in build.lowered:
        speed = slowest(contender(build, artifact), build.benched)
        refuse_missed(artifact.name, goals[artifact.name], speed, kept)
    return replace(build, goals=goals)


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
