"""Score masks at work on one student: in its graph, in its training, and in the weights that are deployed."""

from __future__ import annotations

import logging
import math
import operator
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir
import torch
from torch import fx, nn

from graphcompress.analysis.linears import Linear
from graphcompress.coupling.couplings import FFN
from graphcompress.errors import UsageError
from graphcompress.fx.functional import round_to
from graphcompress.graph.expressions import evaluate
from graphcompress.instruments.score_masks.amounts import Amounts, cut_for
from graphcompress.instruments.score_masks.layout import ATTENTION, layout
from graphcompress.instruments.score_masks.selection import Mask, Scores, share_open
from graphcompress.plugin.instrument import Attached, Rates, Step
from graphcompress.rewrite.bias import write_bias
from graphcompress.rewrite.rewriter import Rewriter

if TYPE_CHECKING:
    from graphcompress.instruments.score_masks.score_masks import ScoreMasks

_LOG = logging.getLogger(__name__)
INSIDE = "score_masks"
"""Name of the module in the student that holds scores and masks."""
GROWTH = 50.0
"""Where everything stays that is to go, the multiplier would grow to this in the steps in which things go; at
1 it moves a score as far as a gradient does that always points up."""


class AttachedMasks(Attached):
    """Masks at work on one student."""

    def __init__(self, given: ScoreMasks, student: fx.GraphModule) -> None:
        self.given = given
        self.student = student
        self.paths = {name: path for path, name in student.meta["initializers"].items()}
        self.layout = layout(student.meta["model"], given.grains, given.only)
        if not self.layout.sites:
            raise UsageError(
                f"{given}: no weight of an attention or an FFN can be masked here{self._reasons()}"
            )
        self.scores: list[Scores] = [
            Scores(each, given.selection, given.first) for each in self.layout.scored
        ]
        self.masks: list[Mask] = [Mask(site, self.scores) for site in self.layout.sites]
        self.amounts = Amounts(self.layout, self.masks)
        inside = nn.Module()
        inside.add_module("scores", nn.ModuleList(self.scores))
        inside.add_module("masks", nn.ModuleList(self.masks))
        student.add_submodule(INSIDE, inside)
        for mask in self.masks:
            # Over ones, the sums are how many parameters each score decides about.
            for pattern, counts in zip(
                mask.site.patterns, mask.sums(torch.ones(mask.site.shape)), strict=True
            ):
                self.scores[pattern.scores].counts += counts
        self._refuse_unreachable()
        self._write()
        self._pull = 0.0
        self._has_begun = False

    def _reasons(self) -> str:
        told = [f"{name}: {reason}" for name, reason in self.layout.skipped.items()]
        return f" ({'; '.join(told[:3])})" if told else ""

    def _refuse_unreachable(self) -> None:
        """Refuse a density below what is left when all masks are zero: all would go, and it is not reached.

        Raises:
            UsageError: it says what can be reached.
        """
        least = self._amount([np.zeros(each.values.shape, bool) for each in self.scores])
        if self.given.density is not None and self.given.density < least:
            raise UsageError(
                f"{self.given}: {least:.1%} of what is masked stays whatever is learned: its zeros cannot be "
                f"cut; give a density of {math.ceil(1000 * least) / 1000:g} or more{self._reasons()}"
            )

    def _write(self) -> None:
        """Put the masks into the graph, behind every weight and every bias."""
        graph = self.student.graph
        stored = {str(node.target): node for node in graph.find_nodes(op="get_attr")}
        made = {node.meta["value"]: node for node in graph.nodes if "value" in node.meta}
        for number, mask in enumerate(self.masks):
            weight = stored[self.paths[mask.site.weight.name or ""]]
            with graph.inserting_after(weight):
                pair = graph.call_module(f"{INSIDE}.masks.{number}", (weight,))
            with graph.inserting_after(pair):
                masked = graph.call_function(operator.getitem, (pair, 0))
                units = graph.call_function(operator.getitem, (pair, 1))
            # The mask itself goes on reading the weight.
            weight.replace_all_uses_with(masked, delete_user_cb=lambda user, pair=pair: user is not pair)
            for linear in mask.site.linears if mask.site.makes else ():
                path = None if linear.bias is None else self.paths.get(linear.bias.name or "")
                node = made.get(linear.output.name)
                # Steps with a cache share the weights, and are no part of what is trained.
                if path is None or node is None:
                    continue
                # In half precision a bias is rounded before it is read.
                rounded = [user for user in stored[path].users if user.target is round_to]
                for read in [each for each in (stored[path], *rounded) if each in node.all_input_nodes]:
                    with graph.inserting_before(node):
                        bias = graph.call_function(operator.mul, (read, units))
                    node.replace_input_with(read, bias)
        self.student.recompile()

    # ---- the training

    def rates(self) -> list[Rates]:
        """Scores learn at their own rate; what is measured is moved by no optimiser."""
        lr = 0.0 if self._ranks else self.given.score_lr
        return [Rates([each.values for each in self.scores], lr=lr)]

    @property
    def _ranks(self) -> bool:
        """Whether scores are measured rather than learned."""
        return self.given.selection == "magnitude" or self.given.ema > 0

    @property
    def _spreads(self) -> bool:
        return self.given.spread > 0 and not self._ranks

    def shielded(self) -> Sequence[torch.nn.Parameter]:
        """The scores, where hidden states are to train weights alone (GRAIN); none once nothing trains them.

        What is shielded costs a backward pass of its own.
        """
        magnitude = self.given.selection == "magnitude"  # by which no gradient reaches a score
        if not self.given.apart or self._is_settled or magnitude:
            return []
        return [each.values for each in self.scores]

    def before_step(self, step: Step) -> None:
        """Move the cut; draw the noise of this step."""
        if step.number == 0 and (obstacle := self.given.obstacle(step.steps)):
            _LOG.warning("%s: %s", self.given, obstacle)
        if self.given.selection == "l0":
            self._draw(step)
        if self._is_settled:
            return
        if self.given.selection == "magnitude":
            self._measure()
        progress = self.given.progress(step)
        if progress > 0 and not self._has_begun:
            self._begin()
        asked = -math.inf if self.given.selection == "l0" else self.given.cut_at(progress)
        if self.given.density is None:
            self._cut(asked)
            return
        wanted = 1 - (1 - self.given.density) * progress
        if self.given.selection in ("topk", "magnitude"):
            self._cut(self._cut_for(wanted))
            return
        self._draw_down(step, wanted)
        # The threshold may let no more go at once than the schedule asks for: scores that started together
        # would all fall below it within a few steps.
        self._cut(min(asked, self._cut_for(wanted)))

    def _begin(self) -> None:
        """Spread the scores by what was seen of their masks, so that what goes first is not left to chance.

        A student that is its teacher's copy has next to no gradient, and AdamW makes steps of the same size
        of any: all scores would drift apart at random.
        """
        self._has_begun = True
        if not self._spreads:
            return
        counts = np.concatenate([each.counts.numpy().ravel() for each in self.scores])
        squares = np.concatenate([each.get_buffer("squares").cpu().numpy().ravel() for each in self.scores])
        if not squares.any():
            return
        # By parameter, for what is to be reached is a share of them; and a score lies where the share of the
        # parameters does that matter less.
        order = np.argsort(squares / np.maximum(counts, 1), kind="stable")
        below = np.empty(len(order))
        below[order] = np.cumsum(counts[order]) - counts[order] / 2
        places = self.given.spread * (2 * below / counts.sum() - 1)
        with torch.no_grad():
            for each in self.scores:
                own, places = np.split(places, [each.values.numel()])
                moved = torch.from_numpy(own.reshape(each.values.shape)).to(each.values)
                each.values.add_(moved)

    def _draw(self, step: Step) -> None:
        # By the step alone: the same noise in every process, and after an interruption.
        generator = torch.Generator().manual_seed(step.number)
        for each in self.scores:
            noise = torch.rand(each.values.shape, generator=generator)
            # At 0 and at 1 a logarithm of the gate is infinite.
            each.noise = noise.clamp(1e-6, 1 - 1e-6).to(each.values.device)

    def _measure(self) -> None:
        """The mean magnitude of what each score decides about."""
        with torch.no_grad():
            for each in self.scores:
                each.values.zero_()
            for mask in self.masks:
                weight = self.weight_of(mask).detach().abs()
                for each, total in zip(mask.parts, mask.sums(weight), strict=True):
                    each.values.add_(total / each.counts.to(total))

    def weight_of(self, mask: Mask) -> torch.Tensor:
        """The weight, as the student stores it, that ``mask`` is laid over."""
        return self.student.get_parameter(self.paths[mask.site.weight.name or ""])

    def _cut(self, cut: float) -> None:
        for each in self.scores:
            each.cut = cut

    def _now(self) -> list[np.ndarray]:
        return [each.mask().cpu().numpy() for each in self.scores]

    @property
    def density(self) -> float:
        """Share of the parameters that stay with the masks as they are."""
        return self._amount(self._now())

    def _amount(self, at: Sequence[np.ndarray]) -> float:
        return (
            self.amounts.compact_density(at, self.given.attention_weight)
            if self.given.compact
            else self.amounts.density(at)
        )

    def _cut_for(self, wanted: float, *, nearest: bool = False) -> float:
        values = [each.values.detach().cpu().numpy() for each in self.scores]
        return cut_for(
            values,
            lambda cut: self._amount([each > cut for each in values]),
            wanted,
            nearest=nearest,
        )

    @property
    def _is_settled(self) -> bool:
        return self.scores[0].is_settled

    def _settle(self) -> None:
        """Let what stays be what was asked for, once and for all."""
        if self.given.selection == "magnitude":
            self._measure()
        cut = self._cut_for(self.given.density or 0.0, nearest=True)
        for each in self.scores:
            each.settle(cut)

    def loss(self, step: Step) -> torch.Tensor | None:
        """λ times the mean sigmoid of all scores, per tensor, kind by kind; λ rises as the threshold does."""
        if self.given.penalty is None:
            return None
        share = share_open if self.given.selection == "l0" else torch.sigmoid
        kinds: dict[str, list[torch.Tensor]] = {}
        for each in self.scores:
            kinds.setdefault(each.kind, []).append(share(each.values).mean())
        weights = {ATTENTION: 1.0, FFN: self.given.ffn_penalty}
        total = sum(
            (weights[kind] * torch.stack(means).mean() for kind, means in kinds.items()),
            torch.zeros((), device=self.scores[0].values.device),
        )
        return self.given.penalty * self.given.progress(step) * total / len(kinds)

    def after_step(self, step: Step) -> None:
        """Importance moves on, masks settle; nothing is random when the student is evaluated."""
        for each in self.scores:
            each.noise = None
        if self._is_settled:
            return
        if self.given.ema:
            self._average()
        if self._spreads and not self._has_begun:
            for each in self.scores:
                if each.values.grad is not None:
                    each.get_buffer("squares").add_(each.values.grad.square())
        # After a step, not before the next: without a cool-down the last step has none.
        if self.given.density is not None and self.given.cooling(step):
            self._settle()

    def _average(self) -> None:
        with torch.no_grad():
            for each in self.scores:
                if each.values.grad is not None:
                    importance = each.values.grad.abs() / each.counts.to(each.values)
                    each.values.mul_(self.given.ema).add_(importance, alpha=1 - self.given.ema)

    def _draw_down(self, step: Step, wanted: float) -> None:
        """One step of the multiplier, and of the scores under it, apart from AdamW as its weight decay is."""
        over = self.density - wanted
        falling = (1 - self.given.flat - self.given.cooldown) * step.steps
        self._pull = max(0.0, self._pull + GROWTH * over / max(1.0, falling))
        with torch.no_grad():
            for each in self.scores:
                each.values.sub_(self.given.score_lr * self._pull)

    def may_end(self, step: Step) -> bool:
        """While the schedule cuts, a good score says nothing of the model that is wanted."""
        return self.given.cooling(step) and (self.given.density is None or self._is_settled)

    def shown(self) -> str:
        """Density per kind, as it is now."""
        return " ".join(f"{kind} {share:.1%}" for kind, share in self.amounts.by_kind(self._now()).items())

    def state(self) -> Mapping[str, Any]:
        """The multiplier, whether things go, and the cut with whether it is the last one."""
        return {
            "pull": self._pull,
            "has_begun": self._has_begun,
            "cut": self.scores[0].cut,
            "is_settled": self._is_settled,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take them back."""
        self._pull, self._has_begun = state["pull"], state["has_begun"]
        for each in self.scores:
            each.cut, each.is_settled = state["cut"], state["is_settled"]
        for mask in self.masks:
            mask.fixed = None

    # ---- the deployed graph

    def finish(self, rw: Rewriter) -> None:
        """Multiply the stored weights by their masks; what is masked is zero then, biases too."""
        at = self._now()
        for mask in self.masks:
            site = mask.site
            over = mask.over([part.mask() for part in mask.parts]).cpu().numpy()
            # The best weights were written back without masks, which only the student's graph has.
            rw.overwrite(site.weight, evaluate(site.weight) * over)
            units = np.any(over != 0, axis=1 - site.axis)
            if site.makes and not units.all():
                _mask_biases(rw, mask, units)
        for name, reason in self.layout.skipped.items():
            rw.skip(name, reason)
        shares = ", ".join(f"{kind} {share:.1%}" for kind, share in self.amounts.by_kind(at).items())
        rw.note(f"density {self._amount(at):.2%} of {self.amounts.total:,} parameters ({shares})")


def _mask_biases(rw: Rewriter, mask: Mask, units: np.ndarray) -> None:
    by_bias: dict[ir.Value, list[Linear]] = {}
    for linear in mask.site.linears:
        if linear.bias is not None:
            by_bias.setdefault(linear.bias, []).append(linear)
    for bias, linears in by_bias.items():
        write_bias(rw, linears, evaluate(bias).reshape(-1) * units)
