"""Loss terms between a student and its teacher; padding never counts.

Every squared error is divided by the power of the teacher's value, measured once before the training: 1 is an
error as large as the signal, whatever the value and its width. Every mean is over the whole global batch,
whose counts are known in advance, so that parts of it add up: gradients of micro-batches and of processes are
summed, and the sum is the gradient of the global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import numpy as np
import torch
from torch.nn import functional

from graphcompress.data.samples import Sample, padding_mask
from graphcompress.training.settings import Settings
from graphcompress.training.taps import Shared

ROWS, TOKENS, PAIRS = "rows", "tokens", "pairs"
MSE, KL = "mse", "kl"

Tensors = Mapping[str, torch.Tensor]


@dataclass(frozen=True)
class Answer:
    """One output of the graph that is learned.

    Attributes:
        name: of the output.
        loss: ``mse``, or ``kl`` at a temperature over the last axis.
    """

    name: str
    loss: str


@dataclass(frozen=True)
class Counts:
    """Samples, real tokens and pairs of real tokens in a global batch."""

    rows: int
    tokens: int
    pairs: int

    @classmethod
    def of(cls, feeds: Sequence[Sample]) -> Counts:
        """Counts of samples without their batch dimension."""
        lengths = [length_of(feed) for feed in feeds]
        return cls(len(feeds), sum(lengths), sum(length * length for length in lengths))


def length_of(feed: Sample) -> int:
    """Real tokens of one sample."""
    masks = [array for name, array in feed.items() if "mask" in name and array.ndim == 1]
    if masks:
        return int(np.count_nonzero(masks[0]))
    return max((len(array) for array in feed.values() if array.ndim), default=1)


def mask_of(feed: Mapping[str, np.ndarray]) -> torch.Tensor | None:
    """[batch, sequence], true at real tokens, or None."""
    mask = padding_mask(feed)
    return None if mask is None else torch.from_numpy(mask)


def unit_of(value: torch.Tensor, mask: torch.Tensor | None) -> str:
    """What a mean over ``value`` is a mean over: samples, tokens, or pairs of tokens."""
    if mask is None or value.ndim < 2:
        return ROWS
    # Four axes, the last two of them tokens: scores of attention [batch, heads, queries, keys].
    if value.ndim == 4 and value.shape[2] == value.shape[3] == mask.shape[1]:
        return PAIRS
    return TOKENS if value.shape[:2] == mask.shape else ROWS


def squared_error(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None
) -> tuple[torch.Tensor, str]:
    """Sum over real positions of the mean squared error at each, and the unit that it is a sum over."""
    # Squares overflow in half precision.
    return _sum((student.float() - teacher.float()).square(), mask)


def power(teacher: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, str]:
    """Sum over real positions of the mean square at each, and the unit that it is a sum over."""
    return _sum(teacher.float().square(), mask)


def _sum(squares: torch.Tensor, mask: torch.Tensor | None) -> tuple[torch.Tensor, str]:
    unit = unit_of(squares, mask)
    if unit == ROWS or mask is None:
        return squares.flatten(1).mean(1).sum() if squares.ndim > 1 else squares.sum(), ROWS
    if unit == PAIRS:
        real = mask[:, :, None] & mask[:, None, :]
        return squares.mean(1)[real].sum(), unit
    at = squares[mask]
    return (at.flatten(1).mean(1).sum() if at.ndim > 1 else at.sum()), unit


def divergence(
    student: torch.Tensor, teacher: torch.Tensor, mask: torch.Tensor | None, temperature: float
) -> tuple[torch.Tensor, str]:
    """Sum of T² · KL(teacher ‖ student) of the softmax over the last axis at temperature T, and its unit.

    [batch, classes] is one distribution per sample, [batch, sequence, classes] one per token, and
    [batch, sequence] (a span's start) one over the tokens.
    """
    student, teacher = student.float() / temperature, teacher.float() / temperature
    if mask is not None and student.shape == mask.shape:
        # Not -inf: a difference of two infinities in the logarithms would be NaN.
        student, teacher = (value.masked_fill(~mask, -1e4) for value in (student, teacher))
    p, q = functional.log_softmax(teacher, -1), functional.log_softmax(student, -1)
    # Gradients of softened distributions shrink with the square of the temperature, which T² makes up for
    # (Hinton et al., arXiv:1503.02531).
    each = (p.exp() * (p - q)).sum(-1) * temperature**2
    if mask is not None and each.shape == mask.shape:
        return each[mask].sum(), TOKENS
    return each.sum(), ROWS if each.ndim == 1 else TOKENS


class Losses:
    """All terms of one run.

    Attributes:
        powers: name of a place or output → mean square of the teacher's value.
    """

    def __init__(
        self,
        settings: Settings,
        places: Sequence[Shared],
        answers: Sequence[Answer],
        by_token: Collection[str],
    ) -> None:
        """``by_token`` names the student's values that padding is a part of."""
        self.settings = settings
        self.places = places
        self.answers = answers
        self.powers: dict[str, float] = {}
        self._by_token = by_token
        self._weights = settings.weights()
        kinds = [place.kind for place in places]
        # A kind counts as much as its weight says, however many layers have a place of it.
        self._share = {kind: self._weights[kind] / kinds.count(kind) for kind in set(kinds)}
        self._kept = {
            place.student: {axis: torch.from_numpy(index) for axis, index in place.kept.items()}
            for place in places
        }

    def of_teacher(self, place: Shared, teacher: Tensors) -> torch.Tensor:
        """The teacher's value at a place, narrowed to what the student still has."""
        value = teacher[place.teacher]
        for axis, index in self._kept[place.student].items():
            value = value.index_select(axis, index.to(value.device))
        return value

    def measure(self, teacher: Sequence[tuple[Tensors, torch.Tensor | None]], counts: Counts) -> None:
        """Measure the powers on some batches of the teacher's values; ``counts`` are of all of them."""
        for name, read in self._compared():
            sums = [power(read(values), self._mask_for(name, mask)) for values, mask in teacher]
            total = sum(float(value) for value, _ in sums) / getattr(counts, sums[0][1])
            # A value that is always zero must not be divided by.
            self.powers[name] = max(total, 1e-12)

    def _mask_for(self, name: str, mask: torch.Tensor | None) -> torch.Tensor | None:
        return mask if name in self._by_token else None

    def _compared(self) -> Iterator[tuple[str, Callable[[Tensors], torch.Tensor]]]:
        for place in self.places:
            yield place.student, partial(self.of_teacher, place)
        for answer in self.answers:
            yield answer.name, itemgetter(answer.name)

    def __call__(
        self,
        student: Tensors,
        teacher: Tensors,
        mask: torch.Tensor | None,
        counts: Counts,
    ) -> dict[str, torch.Tensor]:
        """Weighted terms of one part of a global batch whose counts are ``counts``."""
        terms: dict[str, torch.Tensor] = {}
        if self.settings.outputs:
            terms["outputs"] = self.settings.outputs * self._of_answers(student, teacher, mask, counts)
        for place in self.places:
            own, other = student[place.student], self.of_teacher(place, teacher)
            value, unit = squared_error(own, other, self._mask_for(place.student, mask))
            value = value * self._share[place.kind] / (self.powers[place.student] * getattr(counts, unit))
            terms[place.kind] = terms.get(place.kind, 0.0) + value
        return terms

    def _of_answers(
        self, student: Tensors, teacher: Tensors, mask: torch.Tensor | None, counts: Counts
    ) -> torch.Tensor:
        total = torch.zeros(())
        for answer in self.answers:
            own, other = student[answer.name], teacher[answer.name]
            real = self._mask_for(answer.name, mask)
            if answer.loss == KL:
                value, unit = divergence(own, other, real, self.settings.temperature)
                value = value / getattr(counts, unit)
            else:
                value, unit = squared_error(own, other, real)
                value = value / (self.powers[answer.name] * getattr(counts, unit))
            total = total.to(value.device) + value
        return total / max(1, len(self.answers))
