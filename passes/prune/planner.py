"""Which units of which blocks are removed, and how what remains is refitted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphcompress.coupling.couplings import FFN, HEAD
from graphcompress.data.load import Samples
from graphcompress.data.made_up import varied_samples
from graphcompress.files.parts import is_past
from graphcompress.graph.model import Model
from graphcompress.measure.calibrate import too_few
from graphcompress.passes.prune.blocks import Block, Evidence, Witness
from graphcompress.passes.prune.goal_planner import GoalPlanner
from graphcompress.passes.prune.measured import Probe
from graphcompress.passes.prune.ranking import rank
from graphcompress.passes.prune.removal import KINDS, Ranking, Removal, above, removable
from graphcompress.passes.prune.trial import Trial
from graphcompress.plugin.context import Context

DEAD = 1e-6
"""A unit whose norm is at most this share of the largest norm in its block counts as dead: float32 rounds at
a share of about 1e-7, so that what it adds to a sum is lost."""

CHOICES = 32
"""Without a ratio about this many sizes of a block are considered: steps of 3 % of it."""

TRIED = (1.0, 2.5)
"""Where the outputs say what goes, every block is tried alone without so many times the ratio of its units,
and loses no more: what a deeper cut would cost is not known."""

LARGEST_ERROR = 1.0
"""The largest ``max_error`` that can be asked for: a mean in place of the output is as far off."""

DEEPEST = 0.75
"""Without a ratio at most this share of the units of a block is removed."""

OUTLOOK = (0.25, 0.5)
"""Without a ratio the report tells what removing these shares of the units of a block would cost."""


@dataclass(frozen=True)
class Goal:
    """What is wanted; the fields are the options of the pass.

    Attributes:
        ratios: kind of block → share to remove; None where the error decides.
        importance: ``magnitude``, ``activation``, ``obs`` or ``xmax``.
        by_outputs: a ratio holds for all blocks of a kind together, and the outputs say where units go.
        round_to: FFN nodes that stay are a multiple of it.
        refit: refit what remains.
        max_error: limit on a block's error where the error decides.
        z: standard deviations below which the largest activation of a node has to stay for ``xmax``.
    """

    ratios: Mapping[str, float] | None
    importance: str
    by_outputs: bool
    round_to: int
    refit: bool
    max_error: float
    z: float


class Planner:
    """Makes the removals of one run of the pass."""

    def __init__(self, model: Model, ctx: Context, goal: Goal) -> None:
        self.model = model
        self.goal = goal
        self.ctx = ctx
        self.notes: list[str] = []
        """For the user, of what was removed."""
        self._tokens: dict[Block, int] = {}
        """Tokens from which a block is refitted."""

    def removals(self, blocks: Sequence[Block]) -> list[Removal]:
        """One removal for each block."""
        if self.ctx.samples is None:
            return self._by_weights(blocks)
        shared = self._by_outputs(blocks)
        found = shared | self._by_samples(
            [block for block in blocks if block not in shared], self.ctx.samples
        )
        return [found[block] for block in blocks]

    def _by_samples(self, blocks: Sequence[Block], samples: Samples) -> dict[Block, Removal]:
        """By what the samples show of every block alone."""
        witness = Witness(self.model, samples, self.ctx.progress)
        # Moments of what a reader reads say what zeroing does, which is not what cutting does where something
        # runs over the units, or is made of them elsewhere.
        plain = [block for block in blocks if block.plain]
        probes = self._probes(blocks, witness.held_out)
        if self.goal.ratios is None:
            found = {block: self._within_error(block, evidence) for block, evidence in witness.stream(plain)}
            for block, evidence in witness.stream([*probes]):
                found[block] = self._within_measured(probes[block], self._rank(block, evidence), block)
            return found
        rankings = {block: self._rank(block, evidence) for block, evidence in witness.stream(blocks)}
        rankings |= {
            block: self._rank_measured(block, probe, rankings[block]) for block, probe in probes.items()
        }
        chosen = self._at_ratio({block: rankings[block] for block in blocks})
        chosen |= {block: self._measured(chosen[block], probe) for block, probe in probes.items()}
        return chosen | {
            block: self._fitted(chosen[block], evidence) for block, evidence in witness.stream(plain)
        }

    def _by_outputs(self, blocks: Sequence[Block]) -> dict[Block, Removal]:
        """By what the outputs lose, of blocks whose units can be zeros on trial."""
        goal, ratios = self.goal, self.goal.ratios or {}
        alone = [block for block in blocks if block.plain and not block.of_experts]
        if any(is_past(value.name or "") for value in self.model.graph.inputs):
            # Keys and values of all layers have as many heads: loaders make them by one number.
            alone = [block for block in alone if block.group.kind != HEAD]
        if not goal.by_outputs or not alone:
            return {}
        asked = {kind: ratio for kind, ratio in ratios.items() if ratio}
        levels = {
            kind: [min(factor * ratio, max(DEEPEST, ratio)) for factor in TRIED]
            for kind, ratio in asked.items()
        }
        given = self.model, alone, self.ctx, goal.importance, goal.round_to
        planner = GoalPlanner(*given, refit=goal.refit, levels=levels)
        if not planner.effect.aim[1].read:
            self.notes.append("no output says what is lost: every layer loses the ratio, as with scope=layer")
            return {}
        chosen = {
            removal.block: removal
            for kind, ratio in asked.items()
            for removal in planner.shared_out(kind, ratio)
        }
        removals, shares = [chosen[block] for block in alone], list[str]()
        for kind in asked:
            mine = [removal for removal in removals if removal.block.group.kind == kind]
            gone = [len(removal.removed) for removal in mine]
            if any(gone):
                shares.append(f"{sum(gone):,} {KINDS[kind]} ({min(gone):,} to {max(gone):,} of a layer)")
            self._why_they_stay(mine)
        if shares:
            told = planner.effect.told(planner.fitted(removals))
            told = f"{' and '.join(shares)} go where the outputs lose least: {told}"
            self.notes += filter(None, [told, planner.scarcity])
        return chosen

    def _why_they_stay(self, removals: Sequence[Removal]) -> None:
        """Say why nothing goes of some blocks that share out what goes of all."""
        total = sum(removal.block.size for removal in removals)
        some = any(len(removal.removed) for removal in removals)
        for removal in removals:
            if some and self._least(removal.block) < removal.block.size:
                also = "; scope=layer cuts here, too" if self._deepest(removal.block) else ""
                removal.reason = f"{KINDS[removal.block.group.kind]} of other blocks cost less{also}"
            else:
                self._below_rounding(removal, total)

    def scarcity(self, removals: Sequence[Removal]) -> str:
        """A sentence about refits, or about a ranking by obs, from too little data; or nothing."""
        refits = self.goal.refit
        if not self.ctx.samples or not (refits or self.goal.importance == "obs"):
            return ""
        used = [each.block for each in removals if len(each.removed) and (each.fit is not None or not refits)]
        seen = [(block.reader.in_features, self._tokens[block]) for block in used if block in self._tokens]
        return too_few("the refit" if refits else "the ranking by obs", seen)

    def shortfall(self, removals: Sequence[Removal]) -> str:
        """What ``xmax`` kept from going, and the z that would let it go; nothing where all went."""
        asked, reach = 0, 0.0
        for removal in removals:
            most, peaks = self._deepest(removal.block), removal.peaks
            asked += most
            if peaks is not None and most > 0 and len(removal.removed) < most:
                reach = max(reach, float(peaks[most - 1]))
        gone = sum(len(removal.removed) for removal in removals)
        if not reach:
            return ""
        return (
            f"{gone:,} of the {asked:,} FFN nodes go that the ratio asks for: the largest activations of the "
            f"others are not below z={self.goal.z:g} standard deviations; z={above(reach):g} lets them go"
        )

    # ---- without samples

    def _by_weights(self, blocks: Sequence[Block]) -> list[Removal]:
        if self.goal.ratios is None:
            return [self._dead(block) if block.plain else _unknown(block) for block in blocks]
        probes = self._probes(blocks, varied_samples(self.model, seed=self.ctx.seed))
        chosen = self._at_ratio({block: self._rank(block, None) for block in blocks})
        return [
            self._measured(chosen[block], probes[block]) if block in probes else chosen[block]
            for block in blocks
        ]

    # ---- blocks whose units go elsewhere than to their reader

    def _probes(self, blocks: Sequence[Block], samples: Samples) -> dict[Block, Probe]:
        return {block: Probe(self.model, block, samples) for block in blocks if not block.plain}

    def _rank_measured(self, block: Block, probe: Probe, ranking: Ranking) -> Ranking:
        """Heads by what removing each alone costs, unless weights are to decide; FFN nodes are too many."""
        if self.goal.importance in ("magnitude", "xmax") or block.group.kind != HEAD:
            return ranking
        costs = np.array([probe.errors([unit]).worst ** 2 for unit in range(block.size)])
        order = np.argsort(costs, kind="stable")[: block.size - 1]
        return Ranking(order, costs[order])

    def _within_measured(self, probe: Probe, ranking: Ranking, block: Block) -> Removal:
        """As many units as keep everything that is made of them within the limit."""
        ranking = self._rank_measured(block, probe, ranking)
        counts = [count for count in self._choices(block) if count <= len(ranking.order)]
        errors = [probe.errors(ranking.order[:count]).worst for count in counts]
        within = [count for count, error in zip(counts, errors, strict=True) if error <= self.goal.max_error]
        removal = Removal(block, ranking.order[: max(within, default=0)])
        if within:
            removal.error = errors[counts.index(max(within))]
        else:
            removal.reason = f"removing {KINDS[block.group.kind]} costs more than max_error"
            self._name_error(removal, min(errors, default=np.inf))
        return removal

    def _name_error(self, removal: Removal, least: float) -> None:
        """Name the ``max_error`` at which some units go, ``least`` being what the cheapest cost."""
        if above(least) <= LARGEST_ERROR:
            removal.figures["needs_max_error"] = above(least)
        else:
            removal.reason += f", whatever it is: {least:.3g} of the spread would be lost"

    def _measured(self, removal: Removal, probe: Probe) -> Removal:
        """The error of a removal; nothing goes where it shows in what no refit can make good."""
        if not len(removal.removed):
            return removal
        errors = probe.errors(removal.removed)
        removal.error = errors.worst
        if errors.shown <= self.goal.max_error:
            return removal
        kind = KINDS[removal.block.group.kind]
        left = Removal(
            removal.block,
            np.arange(0),
            figures={"error": errors.shown},
            reason=f"a mean or a product of its {kind} is used elsewhere, where no refit makes good what a "
            "ratio takes: that is for max_error alone to allow",
        )
        self._name_error(left, errors.shown)
        return left

    def _at_ratio(self, rankings: Mapping[Block, Ranking]) -> dict[Block, Removal]:
        """The units that go at the ratio that was asked for; where none does, why."""
        removals = {}
        for block, ranking in rankings.items():
            count = self._most(block, min(len(ranking.order), self._deepest(block)) / block.size)
            removals[block] = removal = Removal(block, ranking.order[:count], peaks=ranking.peaks)
            if not len(removal.removed):
                self._why_nothing(removal, ranking)
        return removals

    def _why_nothing(self, removal: Removal, ranking: Ranking) -> None:
        """Say why no unit goes of a block at its ratio, and the value at which some would."""
        block, least = removal.block, self._least(removal.block)
        if ranking.peaks is not None and len(ranking.order) < least < block.size:
            self._too_active(removal, ranking.peaks)
        else:
            self._below_rounding(removal, block.size)

    def _below_rounding(self, removal: Removal, total: int) -> None:
        """Say that a ratio of ``total`` units is fewer than can go, or that a block is too small for any."""
        block, least = removal.block, self._least(removal.block)
        noun, name = KINDS[block.group.kind], "ffn" if block.group.kind == FFN else "heads"
        if least >= block.size:
            removal.reason = f"it has {block.size} {noun}, and {self._round_to(block)} must stay"
            return
        removal.reason = f"{name}={self._ratio(block):g} is fewer {noun} than the {least} that go at once"
        removal.figures[f"needs_{name}"] = above(least / total)

    def _too_active(self, removal: Removal, peaks: np.ndarray) -> None:
        least = self._least(removal.block)
        removal.reason = f"fewer than the {least} FFN nodes that go at once peak below z={self.goal.z:g}"
        removal.figures["needs_z"] = above(float(peaks[least - 1]))

    def _dead(self, block: Block) -> Removal:
        """Units that the reader does not listen to, and FFN nodes without input: those give a constant."""
        unread = _negligible(block.norms([block.reader]))
        unfed = _negligible(block.norms(block.group.producers)) & (block.group.kind == FFN)
        # The constant that such nodes give would have to go into a bias, which experts have not.
        unfed &= not block.of_experts
        # An axis of size 0 is no model that a runtime accepts, so one unit stays even where all are dead.
        removed = np.flatnonzero(unread | unfed)[: block.size - 1]
        dead = len(removed)
        removed = removed[: self._most(block, dead / block.size)]
        if not len(removed):
            return Removal(block, removed, reason=self._why_none_is_dead(block, dead))
        # What nobody reads leaves nothing to make up for; a constant that is read has to go into the
        # reader's bias.
        if not unfed.any():
            return Removal(block, removed)
        # A constant is the same on any input, so made-up rows show it as well as real ones would.
        witness = Witness(self.model, varied_samples(self.model, seed=self.ctx.seed), self.ctx.progress)
        removal = Removal(block, removed)
        ((_, evidence),) = witness.stream([block])
        removal.fit = Trial(block, evidence, refit=True).final(removal.rows, np.inf)
        return removal

    def _why_none_is_dead(self, block: Block, dead: int) -> str:
        noun = KINDS[block.group.kind]
        if not dead:
            return f"no {noun} are dead, and without samples the error of removing others is not known"
        step = self._round_to(block)
        return f"{dead} {noun} are dead, fewer than round_to={step} lets go at once; round_to=1 removes them"

    # ---- how many

    def _least(self, block: Block) -> int:
        """The fewest units that can go at once, so that what stays is a multiple of ``round_to``."""
        step = self._round_to(block)
        # A block that is no multiple yet gets there by the remainder; one that is has to lose a whole step.
        return block.size % step or step

    def _round_to(self, block: Block) -> int:
        return self.goal.round_to if block.group.kind == FFN else 1

    def _most(self, block: Block, ratio: float) -> int:
        return removable(block.size, ratio, self._round_to(block))

    def _ratio(self, block: Block) -> float:
        return (self.goal.ratios or {}).get(block.group.kind, 0.0)

    def _deepest(self, block: Block) -> int:
        """The most that this block may lose."""
        if self.goal.ratios is None:
            return self._most(block, DEEPEST)
        return self._most(block, self._ratio(block))

    # ---- which

    def _rank(self, block: Block, evidence: Evidence | None) -> Ranking:
        measure, deepest = self.goal.importance, self._deepest(block)
        return rank(block, evidence, measure, deepest=deepest, z=self.goal.z)

    def _within_error(self, block: Block, evidence: Evidence) -> Removal:
        """As many units as keep the error on held-out tokens below the limit."""
        self._tokens[block] = evidence.fit.count
        ranking = self._rank(block, evidence)
        counts = [count for count in self._choices(block) if count <= len(ranking.order)]
        trial = Trial(block, evidence, refit=self._refits(block))
        # The units of a larger count contain those of a smaller one, so the error grows with the count and
        # the limit can be found by bisection.
        low, high = 0, len(counts)
        while low < high:
            middle = (low + high) // 2
            if trial.error_without(ranking.order[: counts[middle]]) <= self.goal.max_error:
                low = middle + 1
            else:
                high = middle
        removal = self._fitted(Removal(block, ranking.order[: counts[low - 1] if low else 0]), evidence)
        counted = {ratio: self._most(block, ratio) for ratio in OUTLOOK}
        for ratio, count in counted.items():
            # The ranking of obs has refitted after every unit already, so its errors need no trial.
            if self.goal.importance == "obs" and not block.of_experts:
                removal.figures[f"error_at_{ratio}"] = ranking.error(count)
            elif count <= len(ranking.order):
                removal.figures[f"error_at_{ratio}"] = trial.error_without(ranking.order[:count])
        if not len(removal.removed):
            self._why_all_stay(removal, ranking, trial, counts)
        return removal

    def _why_all_stay(self, removal: Removal, ranking: Ranking, trial: Trial, counts: Sequence[int]) -> None:
        """Say why no number of units in ``counts`` goes, and the value at which the fewest would."""
        block, noun = removal.block, KINDS[removal.block.group.kind]
        if counts:
            removal.reason = f"removing {noun} costs more than max_error"
            self._name_error(removal, trial.error_without(ranking.order[: counts[0]]))
        elif ranking.peaks is not None and self._deepest(block):
            self._too_active(removal, ranking.peaks)
        else:
            removal.reason = f"it has {block.size} {noun}, too few to lose {self._least(block)} at once"

    def _refits(self, block: Block) -> bool:
        """Whether what remains of a block is refitted: what samples show is not told apart by expert."""
        return self.goal.refit and not block.of_experts

    def _choices(self, block: Block) -> list[int]:
        """Numbers of units that are tried."""
        step = self._round_to(block)
        step *= max(1, block.size // (CHOICES * step))
        return list(range(self._deepest(block), 0, -step))[::-1]

    def _fitted(self, removal: Removal, evidence: Evidence) -> Removal:
        """Add the refit, and the error that the block has with it on held-out tokens."""
        self._tokens[removal.block] = evidence.fit.count
        if not len(removal.removed):
            return removal
        refits = self._refits(removal.block)
        trial = Trial(removal.block, evidence, refit=refits)
        strength = trial.strength(removal.rows)
        removal.error = trial.error(removal.rows, strength)
        removal.fit = trial.final(removal.rows, strength) if refits else None
        return removal


def _unknown(block: Block) -> Removal:
    kind = KINDS[block.group.kind]
    reason = (
        f"a mean, a norm or a product runs over its {kind}: samples tell what removing some costs (--data)"
    )
    return Removal(block, np.arange(0), reason=reason)


def _negligible(norms: np.ndarray) -> np.ndarray:
    negligible: np.ndarray = norms <= DEAD * norms.max(initial=0.0)
    return negligible
