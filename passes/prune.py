"""prune: fewer heads, fewer FFN nodes, fewer layers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import ClassVar

import numpy as np

from graphcompress.analysis.couplings import FFN, HEAD, couplings
from graphcompress.base import Context, Contract, Lossy, Pass
from graphcompress.cutting import cut
from graphcompress.errors import UsageError
from graphcompress.model import Model
from graphcompress.numerics.importance import contribution, eliminate, rarely_active
from graphcompress.numerics.least_squares import Fit, JointMoments, best_ridge, mean_squared_error, ridge
from graphcompress.options import option
from graphcompress.pruning import Block, Evidence, Witness, blocks_of, write_bias, write_fit
from graphcompress.rewrite import Rewriter

KINDS = {FFN: "FFN nodes", HEAD: "heads"}
RIDGE = 0.3
"""Strength while units are being chosen; the fit that is written takes what held-out tokens like best."""
DEAD = 1e-6
"""A unit that the reader weighs below this share of the largest of its block contributes nothing to see."""
CHOICES = 32
"""Without a ratio, sizes of a block that are considered."""
DEEPEST = 0.75
"""Without a ratio, at most this share of a block is removed."""


@dataclass(frozen=True, eq=False)
class _Ranking:
    """Units in the order in which they would go.

    Attributes:
        order: [at most size] units.
        costs: of each, as a share of what the block gives in all; comparable between blocks.
    """

    order: np.ndarray
    costs: np.ndarray


@dataclass
class _Plan:
    """What happens to one block."""

    block: Block
    removed: np.ndarray
    fit: Fit | None = None
    error: float | None = None
    figures: dict[str, float] = field(default_factory=dict)

    @property
    def keep(self) -> np.ndarray:
        keep = np.ones(self.block.size, bool)
        keep[self.removed] = False
        return keep


@dataclass(frozen=True)
class Prune(Pass):
    """Remove heads, FFN nodes and, on request, whole layers, and refit what remains.

    The weights become smaller matrices: every runtime gains, no sparse kernels are needed. Without options
    and with samples it removes as many FFN nodes and heads of every block as keeps the block's own output within
    ``max_error``, measured on held-out samples after the refit. Without samples it removes only what is dead.

    Importance of a unit:
        magnitude: its producers' weights times its reader's, in norms.
        activation: the energy that it adds to the block's output on the samples.
        obs: what is lost after the other weights are refitted, with every removal taken into account (optimal
            brain surgeon; ZipLM, arXiv:2302.04089).
        xmax: only FFN nodes whose largest activation is below z standard deviations of the layer's largest
            activations (Fully Quantized Transformer, arXiv:1910.10485 v1); how many differs between layers.
        auto: obs with samples, magnitude without.

    Left alone: tied weights, a block that several linears read, the last unit of a block. A reader whose
    weight is an expression over factors is cut but not refitted; only its bias is corrected.
    """

    name: ClassVar[str] = "prune"
    contract: ClassVar[Contract] = Lossy(min_sqnr_db=10.0)

    ffn: float | None = option(None, "share of FFN nodes to remove", minimum=0.0, maximum=1.0)
    heads: float | None = option(None, "share of attention heads to remove", minimum=0.0, maximum=1.0)
    layers: int = option(0, "whole layers to remove, those that change least", minimum=0)
    importance: str = option(
        "auto", "what ranks units", choices=("auto", "magnitude", "activation", "obs", "xmax")
    )
    scope: str = option(
        "layer", "a ratio holds for every layer or for all together", choices=("layer", "global")
    )
    round_to: int = option(8, "FFN nodes that stay in a layer are a multiple of it", unit="nodes", minimum=1)
    refit: bool = option(True, "refit what remains by least squares; needs samples")
    max_error: float = option(
        0.15, "without a ratio: error of a block's output", unit="of its spread", minimum=0.0, maximum=1.0
    )
    z: float = option(0.025, "of importance xmax", unit="standard deviations", minimum=0.0)
    only: str = option("*", "glob over weight names")

    def run(self, model: Model, ctx: Context) -> None:
        """Choose, refit and cut."""
        if ctx.samples is None and self.importance in ("activation", "obs", "xmax"):
            raise UsageError(f"{self}: importance {self.importance} needs samples; give them with --data")
        with Rewriter(model, ctx) as rw:
            blocks = [block for block in blocks_of(rw, couplings(model), self.only) if self._wants(block)]
            plans = _Planner(self, rw, ctx).plans(blocks)
            _carry_out(rw, [plan for plan in plans if len(plan.removed)])

    def ratio(self, kind: str) -> float | None:
        """The share of units of this kind that was asked for."""
        return self.ffn if kind == FFN else self.heads

    @property
    def asks(self) -> bool:
        """Whether anything particular was asked for."""
        return self.ffn is not None or self.heads is not None or self.layers > 0

    def _wants(self, block: Block) -> bool:
        return not self.asks or bool(self.ratio(block.group.kind))


def removable(size: int, ratio: float, round_to: int) -> int:
    """How many of ``size`` units may go: at most the ratio, at least one stays, what stays is a multiple."""
    kept = max(1, size - int(np.floor(size * ratio + 1e-9)))
    return max(0, size - -(-kept // round_to) * round_to)


class _Planner:
    """Chooses what goes."""

    def __init__(self, options: Prune, rw: Rewriter, ctx: Context) -> None:
        self.options = options
        self.rw = rw
        self.ctx = ctx
        self.measure = options.importance
        if self.measure == "auto":
            self.measure = "obs" if ctx.samples else "magnitude"
        self.witness = Witness(rw.model, ctx.samples, ctx.progress) if ctx.samples else None

    def plans(self, blocks: Sequence[Block]) -> list[_Plan]:
        """One plan for each block."""
        if self.witness is None:
            return self._without_samples(blocks)
        if not self.options.asks:
            return [self._within_error(block, evidence) for block, evidence in self.witness.stream(blocks)]
        rankings = {b: self._rank(b, evidence) for b, evidence in self.witness.stream(blocks)}
        counts = self._counts(rankings)
        return [
            self._fitted(_Plan(block, rankings[block].order[: counts[block]]), evidence)
            for block, evidence in self.witness.stream(blocks)
        ]

    def _without_samples(self, blocks: Sequence[Block]) -> list[_Plan]:
        if not self.options.asks:
            return [_Plan(block, _dead(block)) for block in blocks]
        rankings = {block: self._rank(block, None) for block in blocks}
        counts = self._counts(rankings)
        return [_Plan(block, rankings[block].order[: counts[block]]) for block in blocks]

    # ---- how many

    def _round_to(self, block: Block) -> int:
        return self.options.round_to if block.group.kind == FFN else 1

    def _most(self, block: Block, ratio: float) -> int:
        return removable(block.size, ratio, self._round_to(block))

    def _deepest(self, block: Block) -> int:
        """The most that can be removed under the options, of this block alone."""
        if self.options.asks and self.options.scope == "layer":
            return self._most(block, self.options.ratio(block.group.kind) or 0.0)
        return block.size - 1 if self.options.asks else self._most(block, DEEPEST)

    def _counts(self, rankings: dict[Block, _Ranking]) -> dict[Block, int]:
        if self.options.scope == "global":
            return {
                block: count
                for kind in KINDS
                for block, count in self._pooled(
                    {b: r for b, r in rankings.items() if b.group.kind == kind},
                    self.options.ratio(kind) or 0.0,
                ).items()
            }
        return {
            block: min(len(ranking.order), self._most(block, self.options.ratio(block.group.kind) or 0.0))
            for block, ranking in rankings.items()
        }

    def _pooled(self, rankings: dict[Block, _Ranking], ratio: float) -> dict[Block, int]:
        """The cheapest removals of all blocks together; in a block a unit goes only after those before it."""
        budget = int(np.floor(sum(block.size for block in rankings) * ratio + 1e-9))
        offers = sorted(
            (cost, number, index)
            for number, ranking in enumerate(rankings.values())
            for index, cost in enumerate(np.maximum.accumulate(ranking.costs))
        )[:budget]
        counts = np.bincount([number for _, number, _ in offers], minlength=len(rankings))
        return {
            block: self._most(block, int(count) / block.size)
            for block, count in zip(rankings, counts, strict=True)
        }

    # ---- which

    def _rank(self, block: Block, evidence: Evidence | None) -> _Ranking:
        if evidence is None or self.measure == "magnitude":
            scores = (block.norms(block.group.producers) * block.norms([block.reader])) ** 2
        elif self.measure == "obs":
            return self._eliminated(block, evidence, self._deepest(block))
        elif self.measure == "xmax":
            scores = evidence.peaks[block.rows].max(axis=1)
        else:
            moments = evidence.all
            second = moments.xx[:-1, :-1] / max(moments.count, 1)
            scores = contribution(second, block.reader.dense(), block.units, block.size)
        order = np.argsort(scores, kind="stable")[: block.size - 1]
        if self.measure == "xmax":
            order = order[rarely_active(scores, self.options.z)[order]]
        return _Ranking(order, scores[order] / max(float(scores.sum()), np.finfo(np.float64).tiny))

    def _eliminated(self, block: Block, evidence: Evidence, count: int) -> _Ranking:
        moments, weight = evidence.all, block.reader.dense()
        done = eliminate(moments.covariance, weight, block.rows, count, RIDGE)
        energy = max(moments.aimed_at(weight, block.bias()).energy, np.finfo(np.float64).tiny)
        return _Ranking(done.order, np.diff(done.errors, prepend=0.0) / energy)

    # ---- refit and error

    def _fitted(self, plan: _Plan, evidence: Evidence) -> _Plan:
        """Add the refit and the error that the block has with it on held-out tokens."""
        if not len(plan.removed):
            return plan
        trial = _Trial(plan.block, evidence, self.options.refit)
        rows = plan.block.kept_rows(plan.keep)
        strength = trial.strength(rows)
        plan.error = trial.error(rows, strength)
        plan.fit = trial.fit(trial.all, rows, strength) if self.options.refit else None
        return plan

    def _within_error(self, block: Block, evidence: Evidence) -> _Plan:
        """As many units as keep the error on held-out tokens below the limit."""
        counts = self._choices(block)
        ranking = self._eliminated(block, evidence, counts[-1] if counts else 0)
        trial = _Trial(block, evidence, self.options.refit)
        low, high = 0, len(counts)
        while low < high:
            middle = (low + high) // 2
            plan = _Plan(block, ranking.order[: counts[middle]])
            if trial.error(block.kept_rows(plan.keep), RIDGE) <= self.options.max_error:
                low = middle + 1
            else:
                high = middle
        return self._fitted(_Plan(block, ranking.order[: counts[low - 1] if low else 0]), evidence)

    def _choices(self, block: Block) -> list[int]:
        """Numbers of units that are tried: up to the most, all that follow the rounding or a few of them."""
        most, step = self._deepest(block), self._round_to(block)
        step *= max(1, block.size // (CHOICES * step))
        return list(range(most, 0, -step))[::-1]


class _Trial:
    """Fits of one block's reader to what it gave before."""

    def __init__(self, block: Block, evidence: Evidence, refit: bool) -> None:
        self.weight, self.bias = block.reader.dense().astype(np.float64), block.bias()
        self.refit = refit
        self.can_refit = block.can_refit
        self.fit_on = evidence.fit.aimed_at(self.weight, self.bias)
        self.held_out = evidence.held_out.aimed_at(self.weight, self.bias)

    @property
    def all(self) -> JointMoments:
        return self.fit_on + self.held_out

    def fit(self, moments: JointMoments, rows: np.ndarray, strength: float) -> Fit:
        if not self.refit:
            return Fit(self.weight[rows], self.bias)
        return ridge(moments.of(rows), self.weight[rows], strength)

    def strength(self, rows: np.ndarray) -> float:
        if not (self.refit and self.can_refit):
            return np.inf
        return best_ridge(self.fit_on.of(rows), self.held_out.of(rows), self.weight[rows])

    def error(self, rows: np.ndarray, strength: float) -> float:
        """Error on held-out tokens, as a share of the spread of the block's output."""
        fit = self.fit(self.fit_on, rows, strength if self.can_refit else np.inf)
        energy = max(self.held_out.energy, np.finfo(np.float64).tiny)
        return float(np.sqrt(mean_squared_error(fit, self.held_out.of(rows)) / energy))


def _dead(block: Block) -> np.ndarray:
    """Units that the reader does not listen to."""
    norms = block.norms([block.reader])
    return np.flatnonzero(norms <= DEAD * norms.max(initial=0.0))[: block.size - 1]


def _carry_out(rw: Rewriter, plans: Sequence[_Plan]) -> None:
    for plan in plans:
        _record(rw, plan)
    for plan in plans:
        if plan.fit is not None and plan.block.can_refit:
            write_fit(rw, plan.block, plan.block.kept_rows(plan.keep), plan.fit)
    cut(rw, {plan.block.group: plan.keep for plan in plans})
    for plan in plans:
        if plan.fit is not None:
            write_bias(rw, plan.block.reader, plan.fit.bias)


def _record(rw: Rewriter, plan: _Plan) -> None:
    kind = KINDS[plan.block.group.kind]
    detail = f"{len(plan.removed)} of {plan.block.size} {kind} removed"
    figures = {} if plan.error is None else {"error": plan.error}
    for linear in plan.block.linears:
        rw.touch(linear, detail, **figures)
