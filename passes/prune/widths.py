"""How much of the hidden width stays, as a part of the choice for a goal: it scales what everything costs.

Each width is a model of its own, with another best choice of heads and FFN nodes. To make all of those
choices would take as many times as long, so that a narrower model is first asked what its width alone loses.
On top of that the blocks are taken to lose what they lose at the full width, for so much less as the width
has saved: together they lose another share of what each loses alone, which the plan at the full width shows.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

from graphcompress.coupling.couplings import HIDDEN, Group, couplings
from graphcompress.errors import UsageError
from graphcompress.files.parts import handed_on
from graphcompress.graph.model import Model
from graphcompress.narrowing.streams import why_fixed, width_left
from graphcompress.numerics.importance import TINY
from graphcompress.passes.prune.goal_planner import Budget, GoalPlanner
from graphcompress.passes.prune.goals import Reached
from graphcompress.rewrite.rewriter import Rewriter

RATIOS = (0.125, 0.25, 0.375, 0.5)
"""Shares of the width that go: what stays of usual widths is a multiple of 32, for which kernels are made."""


@dataclass(frozen=True)
class Wide:
    """The model of one width, and what is reached with it.

    Attributes:
        rw: of the model as it is, or of a narrowed copy.
        groups: its couplings.
        planner: of its blocks.
        hidden: share of the width that went.
    """

    rw: Rewriter
    groups: Sequence[Group]
    planner: GoalPlanner
    hidden: float = 0.0


@dataclass(frozen=True)
class Planned:
    """What is done for a goal.

    Attributes:
        at: the width.
        reached: the goal with it.
    """

    at: Wide
    reached: Reached

    @property
    def key(self) -> tuple[float, float, float]:
        """By which plans for one goal are held against each other; less is better."""
        return self.reached.missed, self.reached.left, self.reached.lost

    @property
    def told_cost(self) -> str:
        """What decides between plans that reach the goal."""
        if self.reached.left:
            return f"{self.reached.left:.1%} of the time is left"
        return f"the outputs lose {self.reached.lost:.3g}"

    def told(self, note: str) -> Planned:
        """The same with a ``note`` for the user."""
        return replace(self, reached=replace(self.reached, notes=[*self.reached.notes, note]))


@dataclass(frozen=True)
class Widths:
    """The widths among which the plan for a goal is chosen.

    Attributes:
        round_to: features that stay are a multiple of it.
        reach: reaches the goal with a model of one width.
        narrowed: a narrower copy of the model, by the share of the width that goes.
        share: what a narrowed model takes of the time, the bytes or the parameters of the one before.
    """

    round_to: int
    reach: Callable[[GoalPlanner], Reached]
    narrowed: Callable[[Wide, float], Wide | None]
    share: Callable[[GoalPlanner], float]

    def best(self, full: Wide) -> Planned:
        """The plan of least cost: of the full width, or of a narrower one that may be better.

        Raises:
            UsageError: no width reaches the goal.
        """
        try:
            plan = Planned(full, self.reach(full.planner))
        except UsageError as refusal:
            plan = self._within_reach(full, refusal)
        budget = plan.reached.budget
        if budget is None or plan.at.hidden:
            return plan
        try:
            return self._narrower(plan, budget)
        except UsageError as error:  # the goal is out of reach, or a profile does not know narrower models
            return plan.told(f"the width stays: {error}")

    def _narrower(self, plan: Planned, budget: Budget) -> Planned:
        """``plan``, or that of the narrower width with which the forecast is best.

        Raises:
            UsageError: with that width the goal is out of reach.
        """
        full = plan.at
        together = plan.reached.lost / max(full.planner.forecast(budget), TINY)
        least = plan.reached.lost
        promising, told = None, "the width stays: it has no smaller multiple of round_to"
        for wide in self._narrowed(full):
            lost = wide.planner.fitted([])
            foreseen = lost + together * full.planner.forecast(budget.at_share(self.share(wide.planner)))
            if foreseen >= least:
                told = (
                    f"the width stays: {1 - wide.hidden:g} of it would lose {lost:.3g} by itself and "
                    f"about {foreseen:.3g} with the blocks, of {plan.reached.lost:.3g} at the full width"
                )
                break
            promising, least = wide, foreseen
        if promising is None:
            return plan.told(told)
        narrow = Planned(promising, self.reach(promising.planner))
        costs = f"{narrow.told_cost}, at the full width {plan.told_cost}"
        if narrow.key >= plan.key:
            return plan.told(f"the width stays: with {1 - promising.hidden:g} of it {costs}")
        return narrow.told(f"{1 - promising.hidden:g} of the width stays: {costs}")

    def _within_reach(self, full: Wide, refusal: UsageError) -> Planned:
        """The best plan of narrower widths, where the full one cannot reach the goal.

        Raises:
            UsageError: none reaches it.
        """
        best: Planned | None = None
        for wide in self._narrowed(full):
            try:
                plan = Planned(wide, self.reach(wide.planner))
            except UsageError as error:
                refusal = error
                continue
            if best is not None and plan.key >= best.key:
                break
            best = plan
        if best is None:
            raise refusal
        return best.told(f"{1 - best.at.hidden:g} of the width stays: all of it keeps the goal out of reach")

    def _narrowed(self, full: Wide) -> Iterator[Wide]:
        """Narrower copies of the model, the widest first."""
        sizes = [group.size for group in full.groups if group.kind == HIDDEN]
        known = [sizes]
        for ratio in RATIOS:
            left = [width_left(size, ratio, self.round_to) for size in sizes]
            if left not in known and (wide := self.narrowed(full, ratio)) is not None:
                known.append(left)
                yield wide


def why_wide(model: Model) -> str:
    """Why the width is no part of the choice, or an empty text."""
    streams = [group for group in couplings(model) if group.kind == HIDDEN]
    if not streams:
        return why_fixed(model)
    outputs = {value.name: value for value in model.graph.outputs}
    for group in streams:
        known = group.relations
        for name, _ in handed_on(model.parts):
            if group.leaf in known.fixed_leaves(known.axes(outputs[name])):
                return (
                    f"the width stays: one part of the model hands {name} on to another, so that no run of "
                    "one part shows what answers would lose"
                )
    return ""
