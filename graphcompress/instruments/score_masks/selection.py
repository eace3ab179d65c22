"""From scores to masks: what is above a cut stays, and the gradient passes straight through."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from graphcompress.instruments.score_masks.layout import Blocks, MaskedWeight, Scored, Vector

HARD_CONCRETE = "l0"
LOW, HIGH, BETA = -0.1, 1.1, 2 / 3
"""Ends of the stretched interval and temperature of hard concrete gates (arXiv:1712.01312)."""


class _Above(torch.autograd.Function):
    """1 where a score is above the cut; the gradient of the mask is that of the score (straight through)."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, cut: float) -> Tensor:  # noqa: ANN401
        return (scores > cut).to(scores.dtype)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # noqa: ANN401
        return gradient, None


def above(scores: Tensor, cut: float) -> Tensor:
    """Mask of the scores above ``cut``; dL/dS is that of the mask: Σ dL/dW' · W over what it masks."""
    mask: Tensor = _Above.apply(scores, cut)  # type: ignore[no-untyped-call]
    return mask


def gate(scores: Tensor, noise: Tensor | None) -> Tensor:
    """Hard concrete gates in [0, 1]: a sample with ``noise``, uniform in (0, 1); else what is deployed."""
    inside = scores if noise is None else (noise.log() - (-noise).log1p() + scores) / BETA
    return (torch.sigmoid(inside) * (HIGH - LOW) + LOW).clamp(0, 1)


def share_open(scores: Tensor) -> Tensor:
    """Probability that a hard concrete gate is not zero."""
    return torch.sigmoid(scores - BETA * math.log(-LOW / HIGH))


class Scores(nn.Module):
    """One tensor of scores, and the mask that it makes.

    Attributes:
        values: the scores.
        cut: what is above stays. A plain number, for a tensor on a GPU would have to be waited for.
        is_settled: whether the mask no longer changes.
        settled: the mask then.
        counts: parameters that each score decides about.
        squares: sum of the squared gradients of the mask before anything goes: its Fisher information.
        noise: of this step, where gates are sampled.
    """

    def __init__(self, scored: Scored, selection: str, first: float) -> None:
        super().__init__()
        self.kind = scored.kind
        self.selection = selection
        self.values = nn.Parameter(torch.full(scored.shape, first))
        self.cut = -math.inf
        self.is_settled = False
        self.register_buffer("settled", torch.ones(scored.shape))
        self.counts = torch.zeros(scored.shape)
        self.register_buffer("squares", torch.zeros(scored.shape))
        self.noise: Tensor | None = None

    def forward(self) -> Tensor:
        """The mask now."""
        if self.is_settled:
            return self.get_buffer("settled")
        if self.selection == HARD_CONCRETE and math.isinf(self.cut):
            return gate(self.values, self.noise)
        return above(self.values, self.cut)

    @torch.no_grad()
    def mask(self, cut: float | None = None) -> Tensor:
        """What is deployed of the mask, without noise; at another ``cut`` where one is given."""
        if cut is not None:
            return (self.values > cut).float()
        noise, self.noise = self.noise, None
        made: Tensor = self()
        self.noise = noise
        return made

    @torch.no_grad()
    def settle(self, cut: float) -> None:
        """Let the mask at ``cut`` stay from now on."""
        self.get_buffer("settled").copy_(self.mask(cut))
        self.is_settled = True


class Mask(nn.Module):
    """The mask of one stored weight.

    Its forward gives the masked weight, and [inner axis] 1 where anything of an index is left.

    Attributes:
        fixed: the mask and what is left of every index, once all scores are settled.
    """

    def __init__(self, site: MaskedWeight, scores: Sequence[Scores]) -> None:
        super().__init__()
        self.site = site
        # In a tuple, so that scores that several weights share are registered once, where they are made.
        self.parts = tuple(scores[pattern.scores] for pattern in site.patterns)
        self.fixed: tuple[Tensor, Tensor] | None = None
        for number, pattern in enumerate(site.patterns):
            if isinstance(pattern, Vector):
                self.register_buffer(f"units{number}", torch.from_numpy(pattern.units), persistent=False)

    def forward(self, weight: Tensor) -> tuple[Tensor, Tensor]:
        """Weight [as stored] → the masked one, and the mask of the biases."""
        if self.fixed is not None:
            mask, units = self.fixed
            return weight * mask, units
        mask = self.over([part() for part in self.parts])
        units = (mask.detach() != 0).any(1 - self.site.axis).to(weight.dtype)
        if all(part.is_settled for part in self.parts):
            self.fixed = mask, units
        return weight * mask, units

    def sums(self, array: Tensor) -> list[Tensor]:
        """For each pattern the sums of ``array`` [as the weight] over what each score decides about."""
        found = []
        for number, (part, pattern) in enumerate(zip(self.parts, self.site.patterns, strict=True)):
            # The gradient of what a score is spread over is a sum over it: so sums follow from _spread for
            # every pattern.
            ones = torch.ones(part.values.shape, requires_grad=True, device=array.device)
            with torch.enable_grad():
                spread = self._spread(number, pattern, ones).expand(self.site.shape)
            found.append(torch.autograd.grad(spread, ones, array)[0])
        return found

    def left(self, masks: Sequence[np.ndarray]) -> np.ndarray:
        """[inner axis] how many parameters are left at every index; ``masks`` are those of all scores."""
        inner, outer = self.site.shape[self.site.axis], self.site.shape[1 - self.site.axis]
        share = np.ones(inner)
        for pattern in self.site.patterns:
            kept = masks[pattern.scores] != 0
            if isinstance(pattern, Blocks):
                widths = np.minimum(pattern.outer, outer - pattern.outer * np.arange(kept.shape[1]))
                share *= np.repeat(kept @ widths / outer, pattern.inner)[:inner]
            elif pattern.axis == self.site.axis:
                share *= (pattern.units < 0) | kept[pattern.units]
            else:
                share *= np.mean((pattern.units < 0) | kept[pattern.units])
        return share * outer

    def over(self, masks: Sequence[Tensor]) -> Tensor:
        """Masks of scores, spread over the weight and multiplied."""
        whole = torch.ones((), device=masks[0].device)
        for number, (pattern, mask) in enumerate(zip(self.site.patterns, masks, strict=True)):
            whole = whole * self._spread(number, pattern, mask)
        return whole.expand(self.site.shape)

    def _spread(self, number: int, pattern: Vector | Blocks, mask: Tensor) -> Tensor:
        if isinstance(pattern, Blocks):
            inner, outer = self.site.shape[self.site.axis], self.site.shape[1 - self.site.axis]
            rows = mask.repeat_interleave(pattern.inner, 0)[:inner]
            blocks = rows.repeat_interleave(pattern.outer, 1)[:, :outer]
            return blocks if self.site.axis == 0 else blocks.T
        units = self.get_buffer(f"units{number}")
        along = torch.where(units < 0, torch.ones((), device=mask.device), mask[units.clamp(min=0)])
        return along[:, None] if pattern.axis == 0 else along[None, :]
