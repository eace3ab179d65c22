"""How far are the outputs of two models apart?"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphcompress.data.load import Samples
from graphcompress.data.samples import padding_mask
from graphcompress.errors import ContractError, DataError
from graphcompress.files.parts import is_cache, is_handed_on, is_past
from graphcompress.files.runtime import Feed
from graphcompress.measure.tokens import scores_tokens
from graphcompress.numerics.metrics import (
    NEVER,
    divergences,
    entry_errors,
    ratio_db,
    row_blocks,
    smallest_cosine,
)

Run = Callable[[Feed], Mapping[str, np.ndarray]]

ARGMAX_CLASSES = 2
"""An output whose last axis has at least this many entries is also compared by its largest entry."""

STANDARD_ERRORS = 2.0
"""First passes, or steps, diverge more than all tokens together where their mean does by so many errors."""

READ_LAST = re.compile(r"(?<![a-z])(past|present|hidden_states|attentions|cache)(?![a-z])")
"""Words in the names of outputs that are for another run or for looking inside."""


@dataclass(frozen=True)
class OutputDifference:
    """How far one output of B is from that of A, over all samples; padding is not looked at.

    Attributes:
        name: of the output.
        entries: number of entries compared.
        max_error: largest absolute difference.
        max_relative_error: the same over the largest absolute value of the output of A.
        min_cosine: smallest cosine between two rows (last axis).
        sqnr_db: power of the output over that of the difference; of labels, those that differ are the noise.
        argmax_agreement: share of rows whose largest entry is the same; None for rows of one entry.
        divergence: of scores of tokens the mean KL divergence of what they say of a token, in nats; that of
            first passes or of steps with past where one is surely larger. None for other outputs.
        divergence_error: standard error of that mean, in nats.
    """

    name: str
    entries: int
    max_error: float
    max_relative_error: float
    min_cosine: float
    sqnr_db: float
    argmax_agreement: float | None
    divergence: float | None = None
    divergence_error: float | None = None


@dataclass(frozen=True)
class Difference:
    """How far the outputs of B are from those of A: the worst figures of all outputs, and those of each.

    An output that A and B copy from an input says nothing about the model, and is left out; so is the part of
    an output that continues an input, such as past keys and values.

    Attributes:
        samples: number of samples compared.
        max_error, max_relative_error: of the worst output.
        min_cosine, sqnr_db: of the worst output that is no cache, if there is any.
        argmax_agreement: of the first output that has one.
        outputs: what a person reads first (logits) first, what is passed on to another run last.
        made_up: the samples were made up, not a user's.
    """

    samples: int
    max_error: float
    max_relative_error: float
    min_cosine: float
    sqnr_db: float
    argmax_agreement: float | None
    outputs: tuple[OutputDifference, ...] = ()
    made_up: bool = False

    @property
    def worst(self) -> OutputDifference:
        """The output of the lowest SQNR; caches count where there is nothing else."""
        return min(_read_first(self.outputs), key=lambda output: output.sqnr_db)

    @property
    def divergence(self) -> float | None:
        """The largest divergence of an output, in nats; None where no output scores tokens."""
        found = [output.divergence for output in self.outputs if output.divergence is not None]
        return max(found, default=None)

    @property
    def sure_divergence(self) -> float | None:
        """The divergence less two standard errors, in nats: no chance of which tokens were seen."""
        found = [
            output.divergence - STANDARD_ERRORS * (output.divergence_error or 0.0)
            for output in self.outputs
            if output.divergence is not None
        ]
        return max(found, default=None)

    @property
    def samples_text(self) -> str:
        """``16 samples``, ``8 made-up samples``."""
        return f"{self.samples} {'made-up ' if self.made_up else ''}samples"


class _Accumulator:
    """Sums of one output over batches."""

    def __init__(self) -> None:
        self.signal = self.noise = self.max_error = self.peak = 0.0
        self.min_cosine, self.rows, self.agreed, self.entries = 1.0, 0, 0, 0
        # Steps with past are few beside the tokens of a first pass, and would drown in one mean.
        self.divergences: dict[bool, list[np.ndarray]] = {False: [], True: []}

    def add(self, a: np.ndarray, b: np.ndarray) -> None:
        """Take in one batch: numbers with a fraction as they are, labels and ids by entry."""
        self.entries += a.size
        if not np.issubdtype(a.dtype, np.floating):
            self._count(a, b)
            return
        for one, other in row_blocks(a, b):
            self._measure(one, other)

    def add_scores(self, a: np.ndarray, b: np.ndarray, *, continues: bool) -> None:
        """Take in scores of tokens [..., classes]; ``continues`` says whether there are tokens before."""
        rows = (array.reshape(-1, array.shape[-1]) for array in (a, b))
        self.divergences[continues].append(divergences(*rows))

    def _measure(self, a: np.ndarray, b: np.ndarray) -> None:
        error, size = entry_errors(a, b), np.abs(np.where(np.isfinite(a), a, 0.0))
        self.signal += float(np.sum(size**2))
        self.noise += float(np.sum(error**2))
        self.max_error = max(self.max_error, float(np.max(error, initial=0.0)))
        self.peak = max(self.peak, float(np.max(size, initial=0.0)))
        if a.shape[-1] >= ARGMAX_CLASSES:
            self.min_cosine = min(self.min_cosine, smallest_cosine(a, b))
            self.rows += int(np.prod(a.shape[:-1]))
            self.agreed += int(np.sum(a.argmax(-1) == b.argmax(-1)))

    def _count(self, a: np.ndarray, b: np.ndarray) -> None:
        """An entry that differs is an error as large as the output."""
        differ = int(np.sum(a != b))
        self.rows += a.size
        self.agreed += a.size - differ
        self.signal += a.size
        self.noise += differ
        self.peak = 1.0
        self.max_error = max(self.max_error, float(differ > 0))

    def difference(self, name: str) -> OutputDifference:
        """The figures of the output ``name``."""
        divergence, divergence_error = self._divergence()
        return OutputDifference(
            name=name,
            entries=self.entries,
            max_error=self.max_error,
            max_relative_error=self.max_error / max(self.peak, 1e-30),
            min_cosine=self.min_cosine,
            sqnr_db=ratio_db(self.signal, self.noise) if self.signal or self.noise else ratio_db(1.0, 0.0),
            argmax_agreement=self.agreed / self.rows if self.rows else None,
            divergence=divergence,
            divergence_error=divergence_error,
        )

    def _divergence(self) -> tuple[float | None, float | None]:
        """The mean of all tokens, or of first passes or steps where it is surely more; its standard error."""
        kinds = [np.concatenate(found) for found in self.divergences.values() if found]
        if not kinds:
            return None, None
        every = np.concatenate(kinds)
        # A mean of few tokens is uncertain: a handful of steps would decide by the luck of their places. So
        # few may also be alike by luck, so that they are taken to differ as much as all tokens do.
        errors = [float(max(kind.std(), every.std()) / np.sqrt(len(kind))) for kind in (every, *kinds)]
        means = [float(kind.mean()) for kind in (every, *kinds)]
        surely = [mean - STANDARD_ERRORS * error for mean, error in zip(means, errors, strict=True)]
        surely[0] = means[0]
        worst = int(np.argmax(surely))
        return means[worst], errors[worst]


def output_difference(name: str, a: np.ndarray, b: np.ndarray) -> OutputDifference:
    """How far the array ``b`` of the output ``name`` is from ``a``, of the same shape."""
    total = _Accumulator()
    total.add(a, b)
    return total.difference(name)


def compare(
    reference: Iterable[Mapping[str, np.ndarray]],
    run: Run,
    feeds: Iterable[Feed],
    by_token: Collection[str] | None = None,
    *,
    samples: Samples | None = None,
) -> Difference:
    """Compare recorded outputs of A with those of ``run`` on the same feeds, batches of ``samples``.

    Outputs are matched by name; of those in ``by_token`` (see
    :func:`graphcompress.measure.tokens.token_values`; by default of all that have the shape of the mask) the
    tokens that a mask in the feed marks as padding are left out.
    Outputs that are not numbers with a fraction (labels, token ids) are compared by entry.

    Raises:
        ContractError: an output is missing or has another shape.
        DataError: nothing was compared: there are no samples, or an output is empty on all of them.
    """
    sums: dict[str, _Accumulator] = {}
    copies: dict[str, _Accumulator] = {}
    count = 0
    for expected, stored in zip(reference, feeds, strict=True):
        feed = dict(stored)  # what lies on disk is mapped once for all outputs
        actual = run(feed)
        count += len(next(iter(feed.values())))
        mask = padding_mask(feed)
        for name, array in expected.items():
            if is_handed_on(name) and _was_cut(array, actual.get(name)):
                continue
            _check_shape(name, array, actual)
            # What a model computes at padding is nobody's answer.
            keep = mask if by_token is None or name in by_token else None
            a, b = _real_rows(array, keep), _real_rows(actual[name], keep)
            if scores_tokens(name, array):
                a, b = _scored(a, b)
            new = _new_part(a, b, [_real_rows(given, keep) for given in feed.values()])
            sums.setdefault(name, _Accumulator()).add(a[new], b[new])
            if array.size and scores_tokens(name, array):
                sums[name].add_scores(a, b, continues=_continues(feed))
            if sums[name].entries == 0:
                copies.setdefault(name, _Accumulator()).add(a, b)
    # Outputs that only copy an input say nothing of a model, unless it has no others.
    if any(total.entries for total in sums.values()):
        sums = {name: total for name, total in sums.items() if total.entries or not copies[name].entries}
    else:
        sums = copies
    _refuse_nothing(sums, count)
    outputs = sorted((total.difference(name) for name, total in sums.items()), key=_reading_order)
    # What a cache lost shows in the scores of the tokens that follow, which are what anybody reads.
    read = _read_first(outputs)
    return Difference(
        samples=count if samples is None else len(samples),
        max_error=max(output.max_error for output in outputs),
        max_relative_error=max(output.max_relative_error for output in outputs),
        min_cosine=min(output.min_cosine for output in read),
        sqnr_db=min(output.sqnr_db for output in read),
        argmax_agreement=next(
            (output.argmax_agreement for output in outputs if output.argmax_agreement is not None), None
        ),
        outputs=tuple(outputs),
        made_up=samples is not None and samples.synthetic,
    )


def _read_first(outputs: Sequence[OutputDifference]) -> list[OutputDifference]:
    """``outputs`` without caches, where there are others."""
    return [output for output in outputs if not is_cache(output.name)] or list(outputs)


def _scored(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scores of the tokens that both models may write; those of a dropped one are a stand-in in all rows."""
    rows = (array.reshape(-1, array.shape[-1]) for array in (a, b))
    first, second = ((row != NEVER).any(axis=0) for row in rows)  # NaN and what lies below are answers
    kept = first & second
    # Where nothing is left, or nothing is dropped, all of it is compared.
    return (a, b) if kept.all() or not kept.any() else (a[..., kept], b[..., kept])


def _continues(feed: Feed) -> bool:
    """Whether tokens were read before those of ``feed``."""
    return any(is_past(name) and array.size for name, array in feed.items())


def _was_cut(array: np.ndarray, other: np.ndarray | None) -> bool:
    """Whether a cache has fewer heads, or states fewer features: batch and length are the same."""
    if other is None or other.ndim != array.ndim or array.shape == other.shape:
        return False
    return array.shape[0] == other.shape[0] and all(
        a >= b for a, b in zip(array.shape, other.shape, strict=True)
    )


def _check_shape(name: str, array: np.ndarray, actual: Mapping[str, np.ndarray]) -> None:
    if name not in actual or actual[name].shape != array.shape:
        got = list(actual[name].shape) if name in actual else "nothing"
        raise ContractError(f"output {name!r}: expected shape {list(array.shape)}, got {got}")


def _new_part(a: np.ndarray, b: np.ndarray, inputs: Iterable[np.ndarray]) -> tuple[slice, ...]:
    """Where an output holds more than one of ``inputs``, which both models copy: all, a part, nothing.

    Found by the numbers, so that it does not matter by which operators they were copied; an input of equal
    numbers, such as a mask of ones, is no evidence.
    """
    everything = (slice(None),) * a.ndim
    for given in inputs:
        if given.ndim != a.ndim or given.dtype != a.dtype or not given.size or (given == given.flat[0]).all():
            continue
        axes = [axis for axis in range(a.ndim) if given.shape[axis] != a.shape[axis]]
        if not axes and np.array_equal(a, given) and np.array_equal(b, given):
            return (slice(0, 0), *everything[1:])
        if len(axes) == 1 and given.shape[axes[0]] < a.shape[axes[0]]:
            axis, size = axes[0], given.shape[axes[0]]
            old, new = list(everything), list(everything)
            old[axis], new[axis] = slice(size), slice(size, None)
            if np.array_equal(a[tuple(old)], given) and np.array_equal(b[tuple(old)], given):
                return tuple(new)
    return everything


def _reading_order(output: OutputDifference) -> int:
    """Logits are read first; attention maps, hidden states and what the next run gets are read last."""
    name = output.name.lower()
    if "logit" in name:
        return 0
    return 2 if is_read_last(name) else 1


def is_read_last(name: str) -> bool:
    """Whether an output, by its name, is for another run or for looking inside."""
    return READ_LAST.search(name.lower()) is not None


def _refuse_nothing(sums: Mapping[str, _Accumulator], samples: int) -> None:
    empty = next((name for name, total in sums.items() if not total.entries), None)
    if sums and empty is None:
        return
    seen = "no samples" if not sums else f"output {empty!r} is empty on all {samples} samples"
    raise DataError(
        f"nothing was compared, so nothing is shown: {seen}; give samples with --data that have at least one "
        "token and give every output at least one entry"
    )


def _real_rows(array: np.ndarray, mask: np.ndarray | None) -> np.ndarray:
    if mask is None or array.shape[:2] != mask.shape:
        return array
    rows: np.ndarray = array[mask]
    return rows
