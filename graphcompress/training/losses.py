"""Loss terms between a student and its teacher; padding never counts.

Every squared error is divided by the power of the teacher's value, measured once before the training: 1 is an
error as large as the signal, whatever the value and its width. Every mean is over the whole global batch,
whose counts are known in advance, so that parts of it add up: gradients of micro-batches and of processes are
summed, and the sum is the gradient of the global batch.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import torch
from torch.nn import functional

from graphcompress.training.settings import Settings
from graphcompress.training.taps import Shared
from graphcompress.training.tokens import ROWS, Counts, Masks, Unit

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
class Real:
    """The real tokens that a value has an entry for, of one batch.

    Attributes:
        parts: whose tokens lie on its second axis (of attention scores: on that of the queries), and whose on
            that of the keys.
        queries, keys: [batch, sequence], true at real tokens; without ``keys`` all of them are.
    """

    parts: tuple[str, str]
    queries: torch.Tensor
    keys: torch.Tensor | None

    def unit_of(self, value: torch.Tensor) -> Unit:
        """What a mean over ``value`` is a mean over."""
        query, key = self.parts
        if value.ndim < 2:
            return ROWS
        # Four axes, the last two of them tokens: scores of attention [batch, heads, queries, keys].
        if value.ndim == 4 and self.keys is not None and value.shape[2:] == self._lengths:
            return (query, key)
        if value.ndim == 4 and query != key and value.shape[2] == self.queries.shape[1]:
            return (query,)
        return (query,) if value.shape[:2] == self.queries.shape else ROWS

    @property
    def _lengths(self) -> tuple[int, ...]:
        return tuple(mask.shape[1] for mask in (self.queries, self.keys) if mask is not None)


def squared_error(
    student: torch.Tensor, teacher: torch.Tensor, real: Real | None
) -> tuple[torch.Tensor, Unit]:
    """Sum over real positions of the mean squared error at each, and the unit that it is a sum over."""
    # Squares overflow in half precision.
    return _sum((student.float() - teacher.float()).square(), real)


def power(teacher: torch.Tensor, real: Real | None) -> tuple[torch.Tensor, Unit]:
    """Sum over real positions of the mean square at each, and the unit that it is a sum over."""
    return _sum(teacher.float().square(), real)


def _sum(squares: torch.Tensor, real: Real | None) -> tuple[torch.Tensor, Unit]:
    unit = ROWS if real is None else real.unit_of(squares)
    if real is None or unit == ROWS:
        return squares.flatten(1).mean(1).sum() if squares.ndim > 1 else squares.sum(), ROWS
    if len(unit) == 2 and real.keys is not None:
        pairs = real.queries[:, :, None] & real.keys[:, None, :]
        return squares.mean(1)[pairs].sum(), unit
    if squares.shape[:2] != real.queries.shape:  # scores over keys that are all real
        squares = squares.transpose(1, 2)
    at = squares[real.queries]
    return (at.flatten(1).mean(1).sum() if at.ndim > 1 else at.sum()), unit


def divergence(
    student: torch.Tensor, teacher: torch.Tensor, real: Real | None, temperature: float
) -> tuple[torch.Tensor, Unit]:
    """Sum of T² · KL(teacher ‖ student) of the softmax over the last axis at temperature T, and its unit.

    [batch, classes] is one distribution per sample, [batch, sequence, classes] one per token, and
    [batch, sequence] (a span's start) one over the tokens. Of several per sample whose padding is not known
    it is their mean.
    """
    mask = None if real is None else real.queries
    student, teacher = student.float() / temperature, teacher.float() / temperature
    if mask is not None and student.shape == mask.shape:
        # Not -inf: a difference of two infinities in the logarithms would be NaN.
        student, teacher = (value.masked_fill(~mask, -1e4) for value in (student, teacher))
    p, q = functional.log_softmax(teacher, -1), functional.log_softmax(student, -1)
    # Gradients of softened distributions shrink with the square of the temperature, which T² makes up for
    # (Hinton et al., arXiv:1503.02531).
    each = (p.exp() * (p - q)).sum(-1) * temperature**2
    if real is not None and each.shape == real.queries.shape:
        return each[real.queries].sum(), real.parts[:1]
    return each.sum() if each.ndim < 2 else each.flatten(1).mean(1).sum(), ROWS


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
        by_token: Mapping[str, tuple[str, str]],
    ) -> None:
        """``by_token``: the student's values that padding is a part of → whose, see :class:`Real`."""
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

    @property
    def gives_outputs(self) -> bool:
        """Whether there is a term of outputs."""
        return bool(self.settings.outputs and self.answers)

    def of_teacher(self, place: Shared, teacher: Tensors) -> torch.Tensor:
        """The teacher's value at a place, narrowed to what the student still has."""
        value = teacher[place.teacher]
        for axis, index in self._kept[place.student].items():
            value = value.index_select(axis, index.to(value.device))
        return value

    def measure(self, teacher: Sequence[tuple[Tensors, Masks]], counts: Counts) -> None:
        """Measure the powers on some batches of the teacher's values; ``counts`` are of all of them."""
        for name, read in self._compared():
            sums = [power(read(values), self._real(name, masks)) for values, masks in teacher]
            total = sum(float(value) for value, _ in sums) / counts[sums[0][1]]
            # A value that is always zero must not be divided by.
            self.powers[name] = max(total, 1e-12)

    def _real(self, name: str, masks: Masks) -> Real | None:
        query, key = self._by_token.get(name, (None, None))
        if query is None or key is None or query not in masks:
            return None
        return Real((query, key), masks[query], masks.get(key))

    def _compared(self) -> Iterator[tuple[str, Callable[[Tensors], torch.Tensor]]]:
        for place in self.places:
            yield place.student, partial(self.of_teacher, place)
        for answer in self.answers:
            yield answer.name, itemgetter(answer.name)

    def __call__(
        self,
        student: Tensors,
        teacher: Tensors,
        masks: Masks,
        counts: Counts,
    ) -> dict[str, torch.Tensor]:
        """Weighted terms of one part of a global batch whose counts are ``counts``."""
        terms: dict[str, torch.Tensor] = {}
        if self.gives_outputs:
            terms["outputs"] = self.settings.outputs * self._of_answers(student, teacher, masks, counts)
        for place in self.places:
            own, other = student[place.student], self.of_teacher(place, teacher)
            value, unit = squared_error(own, other, self._real(place.student, masks))
            value = value * self._share[place.kind] / (self.powers[place.student] * counts[unit])
            terms[place.kind] = terms.get(place.kind, 0.0) + value
        return terms

    def _of_answers(self, student: Tensors, teacher: Tensors, masks: Masks, counts: Counts) -> torch.Tensor:
        total = torch.zeros(())
        for answer in self.answers:
            own, other = student[answer.name], teacher[answer.name]
            real = self._real(answer.name, masks)
            if answer.loss == KL:
                value, unit = divergence(own, other, real, self.settings.temperature)
                value = value / counts[unit]
            else:
                value, unit = squared_error(own, other, real)
                value = value / (self.powers[answer.name] * counts[unit])
            total = total.to(value.device) + value
        return total / max(1, len(self.answers))
