"""Chooses how many units of every block stay, so that a goal is reached and the outputs lose least."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from graphcompress.coupling.couplings import FFN, HEAD
from graphcompress.cutting.stand_in import may_be_empty
from graphcompress.data.held_out import split
from graphcompress.data.load import Samples
from graphcompress.graph.model import Model
from graphcompress.measure.calibrate import too_few
from graphcompress.measure.verify import Run
from graphcompress.numerics.knapsack import cheapest
from graphcompress.numerics.least_squares import LinearMap
from graphcompress.passes.prune.blocks import Block, Witness
from graphcompress.passes.prune.fisher import fisher_information
from graphcompress.passes.prune.ranking import rank
from graphcompress.passes.prune.removal import Ranking, Removal
from graphcompress.passes.prune.sequential import refitted
from graphcompress.passes.prune.trial import Trial
from graphcompress.passes.prune.trial_model import Effect, TrialModel, whole
from graphcompress.plugin.context import Context

LEVELS = (0.25, 0.5, 0.75)
"""Shares of the units of a block that are removed to see it in the outputs; between them the loss follows
the costs of the single units."""

FISHER_SAMPLES = 200
"""A mean of so many squared gradients is right to a tenth, where gradients are normal: √(2 / samples)."""

JUDGED = 200
"""What removals do to the outputs is seen on at most so many samples."""


@dataclass(frozen=True, eq=False)
class Curve:
    """What a block loses and costs with every number of units gone that is considered.

    Attributes:
        block: the block.
        order: [size] units in the order in which they go.
        gone: [options] numbers of units that go, ascending from 0.
        losses: [options] squared error of the outputs, as a share of their spread; of scores of tokens their
            divergence, in nats.
    """

    block: Block
    order: np.ndarray
    gone: np.ndarray
    losses: np.ndarray


@dataclass(frozen=True)
class Budget:
    """What may be left of time, of bytes or of parameters.

    Attributes:
        prices: for every block [options], what it costs with each number of units that may go.
        rest: what everything else costs.
        total: what may be spent on all of it.
    """

    prices: Sequence[np.ndarray]
    rest: float
    total: float

    @property
    def least(self) -> float:
        """What is spent when all goes that may."""
        return self.rest + sum(float(price.min()) for price in self.prices)

    def at_share(self, share: float) -> Budget:
        """The same to spend where everything costs a ``share`` of it."""
        return Budget([share * price for price in self.prices], share * self.rest, self.total)


class GoalPlanner:
    """Curves of all blocks, and the removals for a budget."""

    def __init__(
        self,
        model: Model,
        blocks: Sequence[Block],
        ctx: Context,
        importance: str,
        round_to: int,
        *,
        refit: bool,
        levels: Mapping[str, Sequence[float]] | None = None,
        wider: GoalPlanner | None = None,
    ) -> None:
        """With ``levels``, shares to try, no block goes whole; ``wider`` is of what ``model`` came from."""
        self.model = model
        self.original: Model = model if wider is None else wider.original
        self.blocks = blocks
        self.ctx = ctx
        self.importance = importance
        self.round_to = round_to
        self.refit = refit
        self.levels = levels or dict.fromkeys((FFN, HEAD), LEVELS)
        self._emptiable = may_be_empty(block.group for block in blocks) if levels is None else set()
        """Groups of the blocks of which all may go."""
        samples = ctx.samples or Samples([])
        fit_on, held_out = split(samples)
        self._tokens: list[tuple[int, int]] = []
        self._witness = Witness(model, samples, ctx.progress)
        judged = TrialModel(model, blocks, held_out.spread(JUDGED))
        self.effect: Effect = Effect(judged, None if wider is None else wider.effect)
        self.trial = TrialModel(model, blocks, fit_on)
        rest = TrialModel(model, [], held_out)
        self._held_out = [False] * len(self.trial.feeds) + [True] * len(rest.feeds)
        self.trial.feeds = [*self.trial.feeds, *rest.feeds]

    @cached_property
    def curves(self) -> list[Curve]:
        """One curve for each block, from what the outputs lose when it alone is cut."""
        if self.importance == "fisher":
            return self._fisher_curves()
        found = []
        effects = self.effect.one_by_one(self.blocks)
        for number, (block, evidence) in enumerate(self._witness.stream(self.blocks)):
            self.ctx.progress("prune: what the outputs lose", number, len(self.blocks))
            self._tokens.append((block.reader.in_features, evidence.fit.count))
            ranking = rank(block, evidence, self.importance, deepest=block.size - 1)
            trial = Trial(block, evidence, refit=self.refit)
            found.append(self._curve(block, ranking, trial, next(effects)))
        return found

    @property
    def scarcity(self) -> str:
        """A sentence about a refit, a ranking or Fisher information from too little data, or nothing."""
        samples = len(self.ctx.samples or ())
        if self.importance == "fisher" and samples < FISHER_SAMPLES:
            return (
                f"too little data: Fisher information is a mean over {samples:,} samples; "
                f"{FISHER_SAMPLES:,} would do"
            )
        if not self.refit and self.importance != "obs":
            return ""
        return too_few("the refit" if self.refit else "the ranking by obs", self._tokens)

    def _fisher_curves(self) -> list[Curve]:
        """Curves of what Fisher information says alone; nothing is tried."""
        ctx = self.ctx
        samples = ctx.samples or Samples([])
        scores = fisher_information(self.trial, samples, ctx.seed, ctx.progress)
        curves = []
        for block in self.blocks:
            order = np.argsort(scores[block], kind="stable")
            gone = self.options(block)
            lost = np.concatenate([[0.0], np.cumsum(scores[block][order])])
            curves.append(Curve(block, order, gone, lost[gone]))
        return curves

    def _curve(
        self, block: Block, ranking: Ranking, trial: Trial, effect: Callable[[LinearMap], float]
    ) -> Curve:
        last = np.setdiff1d(np.arange(block.size), ranking.order)
        order = np.concatenate([ranking.order, last])
        gone = self.options(block)
        shape = np.concatenate([[0.0], np.cumsum(ranking.costs)])
        tried = self._tried(block)
        seen = np.array([effect(trial.without(order[:count])) for count in tried])
        # Between two numbers that were tried the loss follows the costs of the single units.
        scale = seen / np.maximum(shape[tried], np.finfo(np.float64).tiny)
        inner = gone[gone < block.size]
        losses = shape[inner] * (np.interp(inner, tried, scale) if tried else 0.0)
        if gone[-1] == block.size:
            losses = np.append(losses, effect(trial.without(order)))
        return Curve(block, order, gone, np.maximum.accumulate(losses))

    def _foreseen(self, curve: Curve) -> np.ndarray:
        """[options] whether no more goes than was tried, or one step."""
        deepest = max(self._tried(curve.block), default=0)
        foreseen: np.ndarray = curve.gone <= max([deepest, *curve.gone[1:2]])
        return foreseen

    def _tried(self, block: Block) -> list[int]:
        """Numbers of units without which a block is tried."""
        counts = {
            min(max(1, round(block.size * share)), block.size - 1) for share in self.levels[block.group.kind]
        }
        return sorted(count for count in counts if count)

    def options(self, block: Block) -> np.ndarray:
        """[options] numbers of units that may go, ascending from 0."""
        step = self.round_to if block.group.kind == FFN else 1
        kept = np.arange(block.size // step * step, 0, -step)
        gone = np.unique(np.concatenate([[0], block.size - kept]))
        return np.append(gone, block.size) if block.group in self._emptiable else gone

    def removals(self, budget: Budget) -> list[Removal] | None:
        """What goes of every block, not refitted yet; None where no choice is within the budget."""
        chosen = self._chosen(budget)
        if chosen is None:
            return None
        return [
            Removal(curve.block, curve.order[: curve.gone[option]])
            for curve, option in zip(self.curves, chosen, strict=True)
        ]

    def shared_out(self, kind: str, ratio: float) -> list[Removal]:
        """What goes of all blocks of a ``kind``: at most a ``ratio`` of all units, and never all of a block.

        Nothing is refitted yet.
        """
        curves = [curve for curve in self.curves if curve.block.group.kind == kind]
        left = [self._foreseen(curve) for curve in curves]
        losses = [curve.losses[some] for curve, some in zip(curves, left, strict=True)]
        kept = [curve.block.size - curve.gone[some] for curve, some in zip(curves, left, strict=True)]
        total = sum(curve.block.size for curve in curves)
        most = min(int(ratio * total + 1e-9), total - sum(int(each.min()) for each in kept))
        # Half a unit more is no unit more, and leaves room for what prices become when they are rounded up.
        budget = total - most + 0.5
        # Blocks of odd sizes, and prices in whole grains, let a little more go than was asked for.
        while (chosen := cheapest(losses, kept, budget)) is None or (
            excess := sum(int(c.gone[o]) for c, o in zip(curves, chosen, strict=True)) - most
        ) > 0:
            budget += 1 if chosen is None else excess
        return [
            Removal(curve.block, curve.order[: curve.gone[option]])
            for curve, option in zip(curves, chosen, strict=True)
        ]

    def forecast(self, budget: Budget) -> float:
        """The least that the outputs lose within the budget, by what each block alone loses."""
        chosen = self._chosen(budget)
        if chosen is None:
            return np.inf
        return sum(float(curve.losses[option]) for curve, option in zip(self.curves, chosen, strict=True))

    def _chosen(self, budget: Budget) -> list[int] | None:
        return cheapest([curve.losses for curve in self.curves], budget.prices, budget.total - budget.rest)

    def fitted(self, removals: Sequence[Removal]) -> float:
        """Add the refit to every one of ``removals``; what the outputs lose with all of them.

        Of a narrowed model it is that against the one before.
        """
        keeps = {removal.block: removal.keep for removal in removals if len(removal.removed)}
        if self.refit:
            fits, errors = refitted(self.model, self.trial, self._held_out, keeps, self.ctx.progress)
        else:
            fits, errors = {block: self._cut_only(block, keep) for block, keep in keeps.items()}, {}
        for removal in removals:
            if self.refit and removal.block in fits:
                fit = fits[removal.block]
                removal.fit = LinearMap(fit.weight[removal.rows], fit.bias)
                removal.error = errors.get(removal.block)
        return self.effect(fits)

    def running(self, removals: Sequence[Removal]) -> Run:
        """A function that answers as the model does once ``removals``, which are fitted, are carried out."""
        fits = {
            each.block: self._cut_only(each.block, each.keep)
            if each.fit is None
            else whole(each.block, each.rows, each.fit)
            for each in removals
            if len(each.removed)
        }
        return lambda feed: self.effect.run(fits, feed)

    def _cut_only(self, block: Block, keep: np.ndarray) -> LinearMap:
        before = self.trial.fits[block]
        rows = block.kept_rows(keep)
        return whole(block, rows, LinearMap(before.weight[rows], before.bias))
