"""Reaches a speed, a size, a share of the weights or a drop of the metric: prices, budgets and the search."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

import numpy as np

from graphcompress.analysis.linears import bias_of, linears
from graphcompress.coupling.couplings import FFN, HEAD, WeightSlice, couplings
from graphcompress.errors import UsageError
from graphcompress.graph.expressions import leaves
from graphcompress.graph.match import fixed_shape
from graphcompress.graph.model import Model
from graphcompress.latency.table import LatencyTable, gained, latency_table
from graphcompress.measure.cache import Measurements
from graphcompress.measure.timing import Ratio
from graphcompress.numerics.least_squares import LinearMap
from graphcompress.passes.prune.blocks import Block, blocks_of
from graphcompress.passes.prune.carve import carve
from graphcompress.passes.prune.goal_planner import Budget, GoalPlanner
from graphcompress.passes.prune.removal import Removal
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter

TRIES = 4
"""A plan that is slower or faster than was asked for is made again, so many times at most."""

CLOSE = 0.05
"""A plan is good enough that is faster than was asked for by no more than this share."""

STEPS = 7
"""The largest budget that keeps a metric is looked for in so many halvings: to one part in a hundred."""


@dataclass(frozen=True)
class Reached:
    """What goes, and what was reached with it.

    Attributes:
        removals: of every block, refitted.
        outcome: how far the goal is reached, in words.
        notes: what else the user is told.
        missed: by how much of it the goal was missed.
        lost: what the outputs lose on held-out samples.
        left: share of the time that is left, where the metric bounds what is lost.
        budget: within which the blocks were chosen last; None where nothing had to go.
    """

    removals: Sequence[Removal]
    outcome: str = ""
    notes: list[str] = field(default_factory=list)
    missed: float = 0.0
    lost: float = 0.0
    left: float = 0.0
    budget: Budget | None = None


def faster(
    planner: GoalPlanner, speedup: float, shapes: Sequence[str], only: str, store: Measurements
) -> Reached:
    """So many times as fast at every one of ``shapes``: measured here, or as a complete ``store`` has it.

    What is measured is the artifact against the file that came in, where the context can say so: what
    simplifying and the target bring need not be pruned. Otherwise the model counts as it comes to the pass.

    Raises:
        UsageError: no removal makes the model that fast.
    """
    model, ctx = planner.model, planner.ctx
    table = latency_table(model, [block.group for block in planner.blocks], shapes, ctx, store)
    speed = None if store.complete else ctx.speed
    if speed is not None:
        whole = min(ratio.median for ratio in speed(model, shapes))
    else:
        whole = 1 / time_share(planner, shapes, store)
    if whole >= speedup:
        note = f"{whole:.2f} times as fast without pruning, of {speedup:g} asked for"
        return Reached([], note, lost=planner.fitted([]))
    budget = Budget(_times(planner, table), table.rest, whole / speedup)
    refused = UsageError(
        f"prune{{speedup={speedup:g}}}: at {','.join(shapes)} this model becomes "
        f"{whole / max(budget.least, 0.01):.3g} times as fast at most; ask for less, or shorten it with "
        "layers"
    )
    if budget.total <= budget.least:
        raise refused
    best = _Plan([], [], 0.0)
    for _ in range(TRIES):
        removals = planner.removals(budget)
        if removals is None:
            break
        if store.complete:
            best = _Plan(removals, [], budget.total)
            break
        twin = _without(model, removals, only)
        if speed is not None:
            ratios = speed(twin, shapes)
        else:
            ratios = gained(planner.original, twin, shapes, ctx, store)
        plan = _Plan(removals, ratios, budget.total)
        # The least that goes among what is fast enough; until then, the fastest.
        best = max(
            best, plan, key=lambda each: (each.slowest >= speedup, min(each.slowest, speedup), each.wanted)
        )
        if 0.0 <= plan.slowest / speedup - 1.0 <= CLOSE:
            break
        # What the table does not see is taken to grow and shrink with the rest.
        wanted = budget.total * plan.slowest / (speedup * (1.0 + CLOSE / 2))
        budget = replace(budget, total=wanted)
    if not best.removals:
        raise refused
    before = "the input" if speed is not None else "before"
    heads, nodes = (_share(planner, table, kind) for kind in (HEAD, FFN))
    slowest = best.slowest
    if store.complete:
        slowest = whole / (table.rest + _left(table, best.removals))
        outcome = f"{slowest:.2f} times as fast by the latencies of the profile"
    else:
        told = (f"{each} times as fast at {at}" for each, at in zip(best.ratios, shapes, strict=True))
        outcome = f"{' and '.join(told)} as {before}"
    notes = [f"heads take {heads:.0%} and FFNs {nodes:.0%} of the time at {','.join(shapes)}"]
    if whole > 1.0:
        by = "by simpler operators and forms" if model is planner.original else "with the width alone"
        notes.append(f"{whole:.2f} of that without pruning, {by}")
    loss = planner.fitted(best.removals)
    missed = max(0.0, 1.0 - slowest / speedup)
    return Reached(
        best.removals,
        f"{outcome}, of {speedup:g} asked for",
        [*notes, planner.effect.told(loss)],
        missed,
        loss,
        budget=replace(budget, total=best.wanted),
    )


def time_share(planner: GoalPlanner, shapes: Sequence[str], store: Measurements) -> float:
    """Share of the time of the model as it came to the pass that the planner's model takes."""
    if planner.model is planner.original:
        return 1.0
    ratios = gained(planner.original, planner.model, shapes, planner.ctx, store)
    return 1 / min(ratio.median for ratio in ratios)


@dataclass(frozen=True)
class _Plan:
    """What goes, how fast that is at every shape, and the share of time that was allowed to be left."""

    removals: Sequence[Removal]
    ratios: Sequence[Ratio]
    wanted: float

    @property
    def slowest(self) -> float:
        return min((ratio.median for ratio in self.ratios), default=0.0)


@dataclass(frozen=True)
class Measure:
    """What a size is counted in.

    Attributes:
        noun: for the user.
        of: a model.
        unit: what goes with one unit of a block.
        advice: what else makes a model smaller by it.
    """

    noun: str
    of: Callable[[Model], float]
    unit: Callable[[Block], float]
    advice: str


def smaller(planner: GoalPlanner, wanted: float, measure: Measure, only: str) -> Reached:
    """No more than ``wanted`` by ``measure``.

    Raises:
        UsageError: what cannot be cut is more already.
    """
    total, left = measure.of(planner.original), measure.of(planner.model)
    costs = [(block.size - planner.options(block)) * measure.unit(block) for block in planner.blocks]
    budget = Budget(costs, left - sum(float(cost[0]) for cost in costs), wanted)
    if wanted <= budget.least:
        raise UsageError(
            f"prune: of {total:,.0f} {measure.noun} at least {budget.least:,.0f} stay when all heads and FFN "
            f"nodes go that may, and {wanted:,.0f} are wanted; ask for more, or {measure.advice}"
        )
    if left <= wanted:
        note = f"{left:,.0f} of {total:,.0f} {measure.noun} are left, {wanted:,.0f} asked for"
        return Reached([], note, lost=planner.fitted([]))
    removals: Sequence[Removal] = []
    for _ in range(TRIES):
        chosen = planner.removals(budget)
        if chosen is None:
            break
        removals = chosen
        left = measure.of(_without(planner.model, removals, only))
        if left <= wanted:
            break
        # New constants, such as sizes and biases of their own, are no part of any unit. What the budget left
        # unspent is taken off as well, or the same choice would come again.
        spent = sum((each.block.size - len(each.removed)) * measure.unit(each.block) for each in removals)
        budget = replace(budget, total=min(budget.total, budget.rest + spent) - (left - wanted))
    loss = planner.fitted(removals)
    note = (
        f"{left:,.0f} of {total:,.0f} {measure.noun} are left ({left / total:.1%}), {wanted:,.0f} asked for"
    )
    return Reached(
        removals, note, [planner.effect.told(loss)], max(0.0, left / wanted - 1.0), loss, budget=budget
    )


def keeping(
    planner: GoalPlanner,
    max_drop: float,
    drop: Callable[[Sequence[Removal]], float],
    shapes: Sequence[str],
    store: Measurements,
) -> Reached:
    """As little time as the metric allows, which becomes at most ``max_drop`` worse."""
    model, ctx = planner.model, planner.ctx
    table = latency_table(model, [block.group for block in planner.blocks], shapes, ctx, store)
    budget = Budget(_times(planner, table), table.rest, 1.0)
    whole, low, high = time_share(planner, shapes, store), budget.least, 1.0
    best: tuple[list[Removal], float, float, float] | None = None
    for step in range(STEPS):
        ctx.progress("prune: the most that the metric allows", step, STEPS)
        middle = (low + high) / 2
        removals = planner.removals(replace(budget, total=middle))
        worse = np.inf
        if removals is not None:
            lost = planner.fitted(removals)
            worse = drop(removals)
        if removals is None or worse > max_drop:
            low = middle
        else:
            high, best = middle, (removals, worse, middle, lost)
    if best is None:
        missed = max(0.0, drop([]) - max_drop) if model is not planner.original else 0.0
        note = f"nothing goes that keeps the metric within max_drop={max_drop:g}"
        return Reached([], note, missed=missed, left=whole)
    removals, worse, left, lost = best
    note = (
        f"the metric is {max(worse, 0.0):.4g} worse, of {max_drop:g} allowed; {left * whole:.0%} of the time "
        "is left"
    )
    return Reached(removals, note, lost=lost, left=left * whole, budget=replace(budget, total=left))


def parameters_of_unit(block: Block) -> float:
    """Parameters of the weights of linears that go with one unit."""
    weights = {leaf for linear in block.linears for leaf in leaves(linear.weight)}
    return sum(_owned(part) for part in block.group.slices if part.value in weights) / block.size


def bytes_of_unit(block: Block) -> float:
    """Stored bytes that go with one unit."""
    sizes = (part.value.dtype.itemsize if part.value.dtype else 4 for part in block.group.slices)
    owned = map(_owned, block.group.slices)
    return sum(size * count for size, count in zip(sizes, owned, strict=True)) / block.size


def linear_parameters(model: Model) -> int:
    """Parameters of the weights of all linears; one that several share counts once."""
    return sum({linear.weight: linear.parameters for linear in linears(model)}.values())


PARAMETERS = Measure(
    "parameters of linears", linear_parameters, parameters_of_unit, "shorten the model with layers"
)
BYTES = Measure(
    "bytes",
    lambda model: model.in_place().bytes_on_disk,
    bytes_of_unit,
    "make its tables smaller with vocab or kron",
)
"""Of the model as it is written; what a target makes of it is another size."""


def _owned(part: WeightSlice) -> float:
    """Entries of a stored tensor that all units of a group own together."""
    shape = fixed_shape(part.value) or ()
    return float(np.prod(shape)) / shape[part.axis] * int(np.sum(part.units >= 0))


def _times(planner: GoalPlanner, table: LatencyTable) -> list[np.ndarray]:
    """For every block the share of time that it takes with each number of units that may go."""
    return [
        np.array([table.share(block.group, block.size - gone) for gone in planner.options(block).tolist()])
        for block in planner.blocks
    ]


def _share(planner: GoalPlanner, table: LatencyTable, kind: str) -> float:
    groups = (block.group for block in planner.blocks)
    return sum(table.share(group, group.size) for group in groups if group.kind == kind)


def _left(table: LatencyTable, removals: Sequence[Removal]) -> float:
    """Share of the time of all blocks that is left."""
    return sum(table.share(each.block.group, int(each.keep.sum())) for each in removals)


def _without(model: Model, removals: Sequence[Removal], only: str) -> Model:
    """A copy of ``model`` that is cut as ``removals`` say, for its time and its size alone."""
    twin = model.clone()
    gone = {removal.block.name: removal.removed for removal in removals if len(removal.removed)}
    with Rewriter(twin, Context()) as rw:
        blocks = [block for block in blocks_of(rw, couplings(twin), only) if block.name in gone]
        carve(rw, [_unfitted(block, gone[block.name]) for block in blocks])
    return twin


def _unfitted(block: Block, removed: np.ndarray) -> Removal:
    """A removal with the weights that stay as they are: a refit gives a reader a bias, which has a size."""
    removal = Removal(block, removed)
    removal.fit = LinearMap(block.reader.dense()[removal.rows], bias_of(block.reader))
    return removal
