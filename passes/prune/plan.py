"""Which units of which blocks are removed, and how what remains is refitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from graphcompress.analysis.couplings import FFN, HEAD
from graphcompress.data.made_up import varied_samples
from graphcompress.graph.model import Model
from graphcompress.passes.prune.blocks import Block, Evidence, Witness, bias_of
from graphcompress.passes.prune.importance import contribution, eliminate, rarely_active
from graphcompress.passes.prune.least_squares import Fit, JointMoments, best_ridge, mean_squared_error, ridge
from graphcompress.plugin.base import Context

KINDS = {FFN: "FFN nodes", HEAD: "heads"}

RIDGE = 0.3
"""Strength while units are being chosen; the fit that is written takes what held-out tokens like best."""

DEAD = 1e-6
"""A unit whose weights are below this share of the largest of its block contributes nothing to see."""

CHOICES = 32
"""Without a ratio, sizes of a block that are considered."""

DEEPEST = 0.75
"""Without a ratio, at most this share of a block is removed."""

_TINY = float(np.finfo(np.float64).tiny)


@dataclass(frozen=True)
class Request:
    """What is wanted; the fields are the options of the pass.

    Attributes:
        ratios: kind of block → share to remove; None where the error decides.
        importance: ``magnitude``, ``activation``, ``obs`` or ``xmax``.
        pooled: a ratio holds for all blocks of a kind together.
        round_to: FFN nodes that stay are a multiple of it.
        refit: refit what remains.
        max_error: limit on a block's error where the error decides.
        z: of ``xmax``.
    """

    ratios: Mapping[str, float] | None
    importance: str
    pooled: bool
    round_to: int
    refit: bool
    max_error: float
    z: float


@dataclass(frozen=True, eq=False)
class Ranking:
    """Units in the order in which they would go.

    Attributes:
        order: [at most size] units.
        costs: of each, as a share of the energy that the block gives in all; comparable between blocks.
    """

    order: np.ndarray
    costs: np.ndarray

    def error(self, count: int) -> float:
        """Error of the block once the first ``count`` units went, where costs are those of ``obs``."""
        return float(np.sqrt(np.sum(self.costs[:count])))


@dataclass(eq=False)
class Plan:
    """What happens to one block.

    Attributes:
        block: the block.
        removed: units that go.
        fit: of the reader's remaining rows, and its bias; None leaves both as they are.
        error: of the block's output on held-out tokens, as a share of its spread (standard deviation).
        outlook: share of units → what removing it would cost.
    """

    block: Block
    removed: np.ndarray
    fit: Fit | None = None
    error: float | None = None
    outlook: dict[float, float] = field(default_factory=dict)

    @property
    def keep(self) -> np.ndarray:
        """[units] mask of what stays."""
        keep = np.ones(self.block.size, bool)
        keep[self.removed] = False
        return keep

    @property
    def rows(self) -> np.ndarray:
        """Input features of the reader that stay."""
        return self.block.kept_rows(self.keep)


def removable(size: int, ratio: float, round_to: int = 1) -> int:
    """How many of ``size`` units may go: at most the ratio; one stays, and what stays divides by it."""
    kept = max(1, size - int(np.floor(size * ratio + 1e-9)))
    return max(0, size - -(-kept // round_to) * round_to)


class Planner:
    """Makes the plans of one run of the pass."""

    def __init__(self, model: Model, ctx: Context, request: Request) -> None:
        self.model = model
        self.request = request
        self.ctx = ctx

    def plans(self, blocks: Sequence[Block]) -> list[Plan]:
        """One plan for each block."""
        if self.ctx.samples is None:
            return self._by_weights(blocks)
        witness = Witness(self.model, self.ctx.samples, self.ctx.progress)
        if self.request.ratios is None:
            exact = [block for block in blocks if block.group.exact]
            found = {block: self._within_error(block, evidence) for block, evidence in witness.stream(exact)}
            return [found.get(block) or _none(block) for block in blocks]
        rankings = {block: self._rank(block, evidence) for block, evidence in witness.stream(blocks)}
        counts = self._counts(rankings)
        return [
            self._fitted(Plan(block, rankings[block].order[: counts[block]]), evidence)
            for block, evidence in witness.stream(blocks)
        ]

    # ---- without samples

    def _by_weights(self, blocks: Sequence[Block]) -> list[Plan]:
        if self.request.ratios is None:
            return [self._dead(block) if block.group.exact else _none(block) for block in blocks]
        rankings = {block: self._rank(block, None) for block in blocks}
        counts = self._counts(rankings)
        return [Plan(block, rankings[block].order[: counts[block]]) for block in blocks]

    def _dead(self, block: Block) -> Plan:
        """Units that the reader does not listen to, and FFN nodes without input: those give a constant."""
        unread = _negligible(block.norms([block.reader]))
        unfed = _negligible(block.norms(block.group.producers)) & (block.group.kind == FFN)
        removed = np.flatnonzero(unread | unfed)[: block.size - 1]
        if not unfed.any() or not len(removed):
            return Plan(block, removed)
        witness = Witness(self.model, varied_samples(self.model, seed=self.ctx.seed), self.ctx.progress)
        plan = Plan(block, removed)
        ((_, evidence),) = witness.stream([block])
        plan.fit = _Trial(block, evidence, refit=True).final(plan.rows, np.inf)
        return plan

    # ---- how many

    def _round_to(self, block: Block) -> int:
        return self.request.round_to if block.group.kind == FFN else 1

    def _most(self, block: Block, ratio: float) -> int:
        return removable(block.size, ratio, self._round_to(block))

    def _ratio(self, block: Block) -> float:
        return (self.request.ratios or {}).get(block.group.kind, 0.0)

    def _deepest(self, block: Block) -> int:
        """The most that this block may lose."""
        if self.request.ratios is None:
            return self._most(block, DEEPEST)
        return block.size - 1 if self.request.pooled else self._most(block, self._ratio(block))

    def _counts(self, rankings: Mapping[Block, Ranking]) -> dict[Block, int]:
        if not self.request.pooled:
            return {block: min(len(r.order), self._deepest(block)) for block, r in rankings.items()}
        counts: dict[Block, int] = {}
        for kind in KINDS:
            counts |= self._shared_out({b: r for b, r in rankings.items() if b.group.kind == kind})
        return counts

    def _shared_out(self, rankings: Mapping[Block, Ranking]) -> dict[Block, int]:
        """The cheapest removals of all blocks together; in a block a unit goes only after those before it."""
        budget = int(np.floor(sum(block.size * self._ratio(block) for block in rankings) + 1e-9))
        offers = sorted(
            (cost, number)
            for number, ranking in enumerate(rankings.values())
            for cost in np.maximum.accumulate(ranking.costs)
        )[:budget]
        counts = np.bincount(np.array([number for _, number in offers], np.int64), minlength=len(rankings))
        return {b: self._most(b, int(n) / b.size) for b, n in zip(rankings, counts, strict=True)}

    # ---- which

    def _rank(self, block: Block, evidence: Evidence | None) -> Ranking:
        measure = self.request.importance
        if evidence is None or measure == "magnitude":
            scores = (block.norms(block.group.producers) * block.norms([block.reader])) ** 2
        elif measure == "obs":
            return _eliminated(block, evidence, self._deepest(block))
        elif measure == "xmax":
            scores = evidence.peaks[block.rows].max(axis=1)
        else:
            moments = evidence.all
            second = moments.xx[:-1, :-1] / max(moments.count, 1)
            scores = contribution(second, block.reader.dense(), block.units, block.size)
        order = np.argsort(scores, kind="stable")[: block.size - 1]
        if measure == "xmax":
            order = order[rarely_active(scores, self.request.z)[order]]
        return Ranking(order, scores[order] / max(float(scores.sum()), _TINY))

    def _within_error(self, block: Block, evidence: Evidence) -> Plan:
        """As many units as keep the error on held-out tokens below the limit."""
        counts = self._choices(block)
        ranking = _eliminated(block, evidence, counts[-1] if counts else 0)
        trial = _Trial(block, evidence, refit=self.request.refit)
        low, high = 0, len(counts)
        while low < high:
            middle = (low + high) // 2
            plan = Plan(block, ranking.order[: counts[middle]])
            if trial.error(plan.rows, RIDGE) <= self.request.max_error:
                low = middle + 1
            else:
                high = middle
        plan = self._fitted(Plan(block, ranking.order[: counts[low - 1] if low else 0]), evidence)
        plan.outlook = {ratio: ranking.error(self._most(block, ratio)) for ratio in (0.25, 0.5)}
        return plan

    def _choices(self, block: Block) -> list[int]:
        """Numbers of units that are tried."""
        step = self._round_to(block)
        step *= max(1, block.size // (CHOICES * step))
        return list(range(self._deepest(block), 0, -step))[::-1]

    def _fitted(self, plan: Plan, evidence: Evidence) -> Plan:
        """Add the refit, and the error that the block has with it on held-out tokens.

        Where something runs over the units, those that stay change with each that goes: what samples show of
        the whole block says neither.
        """
        if not len(plan.removed) or not plan.block.group.exact:
            return plan
        trial = _Trial(plan.block, evidence, refit=self.request.refit)
        strength = trial.strength(plan.rows)
        plan.error = trial.error(plan.rows, strength)
        plan.fit = trial.final(plan.rows, strength) if self.request.refit else None
        return plan


def _none(block: Block) -> Plan:
    return Plan(block, np.arange(0))


class _Trial:
    """Fits of one block's reader to what it gave before anything was cut."""

    def __init__(self, block: Block, evidence: Evidence, *, refit: bool) -> None:
        self.weight, self.bias = block.reader.dense().astype(np.float64), bias_of(block.reader)
        self.refit = refit
        self.can_refit = block.can_refit
        self.fit_on = evidence.fit.aimed_at(self.weight, self.bias)
        self.held_out = evidence.held_out.aimed_at(self.weight, self.bias)

    def strength(self, rows: np.ndarray) -> float:
        """The ridge that held-out tokens like best; infinite where only the bias can be corrected."""
        if not (self.refit and self.can_refit):
            return np.inf
        return best_ridge(self.fit_on.of(rows), self.held_out.of(rows), self.weight[rows])

    def error(self, rows: np.ndarray, strength: float) -> float:
        """Error on held-out tokens, as a share of the spread of the block's output."""
        fit = self._fit(self.fit_on, rows, strength)
        energy = max(self.held_out.energy, _TINY)
        return float(np.sqrt(mean_squared_error(fit, self.held_out.of(rows)) / energy))

    def final(self, rows: np.ndarray, strength: float) -> Fit:
        """The fit to all tokens."""
        return self._fit(self.fit_on + self.held_out, rows, strength)

    def _fit(self, moments: JointMoments, rows: np.ndarray, strength: float) -> Fit:
        if not self.refit:
            return Fit(self.weight[rows], self.bias)
        return ridge(moments.of(rows), self.weight[rows], strength if self.can_refit else np.inf)


def _eliminated(block: Block, evidence: Evidence, count: int) -> Ranking:
    moments, weight = evidence.all, block.reader.dense()
    done = eliminate(moments.covariance, weight, block.rows, count, RIDGE)
    energy = max(moments.aimed_at(weight, bias_of(block.reader)).energy, _TINY)
    return Ranking(done.order, np.diff(done.errors, prepend=0.0) / energy)


def _negligible(norms: np.ndarray) -> np.ndarray:
    negligible: np.ndarray = norms <= DEAD * norms.max(initial=0.0)
    return negligible
