"""What a build has to reach, checked on the artifact itself: a metric, a speed, a size."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import NormalDist
from typing import TYPE_CHECKING

from graphcompress.errors import GoalError, UsageError
from graphcompress.plugin.sizes import NUMBER, parse_size

if TYPE_CHECKING:
    from pathlib import Path

    from graphcompress.build.result import Artifact
    from graphcompress.measure.bench import ShapeResult
    from graphcompress.measure.metrics import Drop


@dataclass(frozen=True)
class CheckedGoal:
    """One thing that was asked for, and whether the artifact has it.

    Attributes:
        text: as the user typed it.
        found: the figure of the artifact; empty for a speed, which differs from run to run.
        met: whether it holds.
    """

    text: str
    found: str
    met: bool


@dataclass(frozen=True)
class MaxDrop:
    """How much worse a metric may become: in its own units, or as a share of what it was.

    With a ``confidence`` the drop has to be shown to be no larger: the upper bound of its confidence interval
    counts instead of the figure itself.
    """

    text: str
    value: float
    relative: bool
    confidence: float = 0.0

    @classmethod
    def parse(cls, text: str, confidence: float = 0.0) -> MaxDrop:
        """Read ``0.01`` or ``1%``.

        Raises:
            UsageError: it is neither, or the confidence is no share of at least a half.
        """
        match = NUMBER.fullmatch(text.strip())
        if match is None or match[2] not in ("", "%"):
            raise UsageError(
                f"--max-drop {text}: give units of the metric, such as 0.01, or a share of it, such as 1%"
            )
        if confidence and not 0.5 <= confidence < 1.0:
            raise UsageError(f"--confidence {confidence:g}: give a share from 0.5 to below 1, such as 0.95")
        relative = match[2] == "%"
        return cls(text.strip(), float(match[1]) / (100.0 if relative else 1.0), relative, confidence)

    def spent(self, drop: Drop) -> float:
        """How much of what is allowed ``drop`` takes: above 1 the goal is missed.

        Raises:
            GoalError: a confidence is asked for, and the metric has no standard error.
        """
        worst = self.worst(drop)
        allowed = self.value * abs(drop.before) if self.relative else self.value
        if not math.isfinite(worst):
            return math.inf
        if allowed > 0.0:
            return worst / allowed
        return 0.0 if worst <= 0.0 else math.inf

    def worst(self, drop: Drop) -> float:
        """The drop that counts: the figure, or the upper bound of its confidence interval."""
        if not self.confidence:
            return drop.value
        if drop.standard_error is None:
            raise GoalError(
                "--confidence needs the standard error of the drop, which this metric has not on these rows; "
                "give more rows with --eval-data, or leave it out"
            )
        # One side of the interval: only a drop counts against the goal.
        return drop.value + NormalDist().inv_cdf(self.confidence) * drop.standard_error

    def goal(self, drop: Drop) -> CheckedGoal:
        """Whether ``drop`` keeps it."""
        figure = f"{max(drop.value, 0.0):.4g}"
        if drop.standard_error is not None:
            figure += f" ± {drop.standard_error:.2g}"
        if self.relative:
            figure += f", {max(drop.share, 0.0):.2%} of {drop.before:.4g}"
        if self.confidence:
            figure += f"; at most {self.worst(drop):.4g} with {self.confidence:.0%} confidence"
        if drop.within_error:
            figure += "; within its standard error"
        text = f"max-drop {self.text}" + (f" confidence {self.confidence:g}" if self.confidence else "")
        return CheckedGoal(text, figure, self.spent(drop) <= 1.0)


def size_goal(text: str, artifact: Artifact) -> CheckedGoal:
    """Whether the files of ``artifact`` are small enough."""
    found = artifact.size.bytes_on_disk
    return CheckedGoal(f"max-size {text}", f"{found / 1e6:.2f} MB", found <= parse_size(text, "--max-size"))


def speed_goal(wanted: float, name: str, benched: Sequence[ShapeResult]) -> CheckedGoal:
    """Whether the artifact that was timed as ``name`` is fast enough at every shape that could be timed."""
    ratios = _ratios(name, benched)
    # What could be timed at no shape has not been shown to be fast.
    return CheckedGoal(f"min-speedup {wanted:g}", "", bool(ratios) and min(ratios.values()) >= wanted)


def slowest(name: str, benched: Sequence[ShapeResult]) -> str:
    """``1.8 × as fast at 8×128``: the shape that decides about a speed."""
    ratios = _ratios(name, benched)
    if not ratios:
        return "could be timed at no shape"
    shape = min(ratios, key=lambda one: ratios[one])
    return f"is {ratios[shape]:.2f} × as fast at {shape}"


def _ratios(name: str, benched: Sequence[ShapeResult]) -> dict[str, float]:
    """Shape → how many times as fast: of a model that writes how fast it writes, tokens per second."""
    decide = [result for result in benched if result.written] or benched
    return {result.shape: result.ratios[name].median for result in decide if name in result.ratios}


def refuse_missed(target: str, goals: Sequence[CheckedGoal], speed: str, kept: Path | None = None) -> None:
    """Fail when one of ``goals`` is missed; ``speed`` tells what was timed, ``kept`` where a training lies.

    Raises:
        GoalError: one is, with the figure.
    """
    missed = [f"--{goal.text} is missed: {_seen(goal, speed)}" for goal in goals if not goal.met]
    if missed:
        written = "nothing was written" if kept is None else f"nothing was written but the training in {kept}"
        raise GoalError(
            f"{target}: {'; '.join(missed)}; {written}. Ask the passes for less, train with distill, or "
            "allow more"
        )


def _seen(goal: CheckedGoal, speed: str) -> str:
    if goal.text.startswith("min-speedup"):
        return f"the artifact {speed}"
    return f"the metric is {goal.found} worse" if goal.text.startswith("max-drop") else f"it has {goal.found}"
