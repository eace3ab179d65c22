"""Samples: what a model is run on, one by one or in padded batches."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Sample = Mapping[str, np.ndarray]
"""One sample: input name → array without the batch dimension."""


QUESTION = "number of the question"
"""Column that is added to windows of long texts: which row of the file a window is of."""


@dataclass(frozen=True)
class Past:
    """Keys and values of earlier tokens that one part of a model reads: a batch is padded in front of them.

    Attributes:
        outputs: input with past, [heads, length, size] in a sample → the output that continues it.
        mask: the input that says which of the past and of the new tokens are real; None where there is none:
            samples in one batch have past of one length then.
    """

    outputs: Mapping[str, str]
    mask: str | None = None

    def length(self, sample: Sample) -> int:
        """Tokens that came before."""
        return int(sample[next(iter(self.outputs))].shape[-2])


@dataclass(frozen=True)
class Samples:
    """Feeds of single samples, with the columns of the data beside them.

    Attributes:
        feeds: one per sample, arrays without the batch dimension.
        columns: other columns of the data (labels, scores), one entry per row.
        pad: input name → value that fills a shorter sample up (0 where not given).
        per_row: samples per data row: 2 where the two texts of a pair are encoded separately.
        synthetic: made up from the model's inputs, not a user's data.
        fixed: input name → its sizes, the batch in front; None where the model does not fix one, empty for an
            input of no axes.
        axes: input name → axis of a feed on which the batch lies, where that is not the first.
        together: samples that run in one batch at most, where more would not fit in memory.
        names: of the classes, by their numbers; empty where nothing says them.
        past: what continues earlier tokens, of every part that reads such.
    """

    feeds: Sequence[Sample]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    pad: Mapping[str, int] = field(default_factory=dict)
    per_row: int = 1
    synthetic: bool = False
    fixed: Mapping[str, tuple[int | None, ...]] = field(default_factory=dict)
    axes: Mapping[str, int] = field(default_factory=dict)
    together: int | None = None
    names: tuple[str, ...] = ()
    past: tuple[Past, ...] = ()

    def __len__(self) -> int:
        return len(self.feeds)

    def first(self, count: int) -> Samples:
        """The first ``count`` rows."""
        columns = {name: values[:count] for name, values in self.columns.items()}
        return dataclasses.replace(self, feeds=self.feeds[: count * self.per_row], columns=columns)

    def rows(self, rows: Sequence[int]) -> Samples:
        """The data rows ``rows``, in that order."""
        per = self.per_row
        return dataclasses.replace(
            self,
            feeds=[self.feeds[row * per + offset] for row in rows for offset in range(per)],
            columns={name: [values[row] for row in rows] for name, values in self.columns.items()},
        )

    def spread(self, count: int) -> Samples:
        """At most ``count`` rows, evenly spread over all."""
        total = len(self) // self.per_row
        return self if total <= count else self.rows([row * total // count for row in range(count)])

    def held_out(self, share: float, most: int) -> tuple[Samples, Samples]:
        """Two parts: all but, and only, a ``share`` of the rows (``most`` at most), evenly spread.

        All windows of a text are in one part. Both are all rows when the share is not even one row.
        """
        texts = self.columns.get(QUESTION, range(len(self) // self.per_row))
        distinct = list(dict.fromkeys(texts))
        count = min(most, int(len(distinct) * share))
        if count == 0:
            return self, self
        # Evenly spread, for files are often sorted by class or by length.
        held = {distinct[number * len(distinct) // count] for number in range(count)}
        rows: tuple[list[int], list[int]] = [], []
        for row, text in enumerate(texts):
            rows[text in held].append(row)
        return self.rows(rows[False]), self.rows(rows[True])

    def batch_size(self, size: int) -> int:
        """``size``, or what the model fixes or the memory holds when that is smaller."""
        return min([size, self.together or size, *(s[0] for s in self.fixed.values() if s and s[0])])

    def fronts(self, index: int, batch: Sequence[int]) -> dict[str, int]:
        """Output that continues past → padded tokens in front of it, of sample ``index`` in this batch."""
        found: dict[str, int] = {}
        for past in self.past:
            longest = max(past.length(self.feeds[other]) for other in batch)
            front = longest - past.length(self.feeds[index])
            found.update(dict.fromkeys(past.outputs.values(), front))
        return found

    def filled(self, count: int) -> int:
        """Rows of a batch of ``count`` samples: one that the model fixes is filled up."""
        return max([count, *(shape[0] for shape in self.fixed.values() if shape and shape[0])])

    def batches(self, size: int, *, by_length: bool = False) -> Iterator[dict[str, np.ndarray]]:
        """Feeds of up to ``size`` samples, padded at the end; ``by_length`` sorts them to pad less."""
        for indices in self.indices(size, by_length=by_length):
            yield self.batch(indices)

    def indices(self, size: int, *, by_length: bool = False) -> Iterator[list[int]]:
        """The samples of every batch of up to ``size``.

        First passes run apart from steps: the longest of one and of the other together may be more tokens
        than there are positions. Where no mask tells past tokens from padding, those with past of one length
        run together.
        """
        groups: dict[tuple[int, ...], list[int]] = {}
        for index in self.order(by_length=by_length):
            lengths = ((past, past.length(self.feeds[index])) for past in self.past)
            key = tuple(length if past.mask is None else min(length, 1) for past, length in lengths)
            groups.setdefault(key, []).append(index)
        size = self.batch_size(size)
        for order in groups.values():
            yield from (order[start : start + size] for start in range(0, len(order), size))

    def order(self, *, by_length: bool) -> list[int]:
        """Indices of the samples, from the shortest to the longest when ``by_length``."""
        indices = list(range(len(self.feeds)))
        if by_length:
            indices.sort(key=lambda index: _length(self.feeds[index]))
        return indices

    def batch(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """One padded feed of the samples at ``indices``; a fixed batch is filled up with the last of them.

        Past is padded in front, and so is the mask over it. An input of no axes (a switch) holds for the
        whole batch: the first sample gives it.
        """
        chosen = [self.feeds[index] for index in indices]
        for past in self.past:
            chosen = _padded_in_front(chosen, past)
        return {
            name: np.asarray(chosen[0][name])
            if self.fixed.get(name) == ()
            else np.moveaxis(
                _stack([sample[name] for sample in chosen], self.pad.get(name, 0), self.fixed.get(name, ())),
                0,
                self.axes.get(name, 0),
            )
            for name in chosen[0]
        }


def _padded_in_front(chosen: Sequence[Sample], past: Past) -> list[Sample]:
    """Samples with past of one length: the mask says that what is put in front of it is none."""
    longest = max(past.length(sample) for sample in chosen)
    padded: list[Sample] = []
    for sample in chosen:
        front = longest - past.length(sample)
        arrays = dict(sample)
        for name in past.outputs:
            array = sample[name]
            arrays[name] = np.pad(array, [*[(0, 0)] * (array.ndim - 2), (front, 0), (0, 0)])
        if past.mask is not None:
            arrays[past.mask] = np.pad(sample[past.mask], (front, 0))
        padded.append(arrays)
    return padded


def padding_mask(feed: Sample) -> np.ndarray | None:
    """[batch, sequence], true at real tokens: the 2-D input of a feed with ``mask`` in its name, or None."""
    masks = (array for name, array in feed.items() if "mask" in name and array.ndim == 2)
    found = next(masks, None)
    return None if found is None else found.astype(bool)


def _length(sample: Sample) -> int:
    return max((array.shape[0] for array in sample.values() if array.ndim), default=0)


def _stack(arrays: Sequence[np.ndarray], pad: int, fixed: Sequence[int | None]) -> np.ndarray:
    """[batch, …]: every array padded at its end to the longest, or to the size that the model fixes."""
    longest = [len(arrays), *(max(sizes) for sizes in zip(*(array.shape for array in arrays), strict=True))]
    shape = [max(size, wanted or 0) for size, wanted in itertools.zip_longest(longest, fixed[: len(longest)])]
    stacked = np.full(shape, pad, arrays[0].dtype)
    for row in range(shape[0]):
        array = arrays[min(row, len(arrays) - 1)]
        stacked[row, ...][tuple(slice(size) for size in array.shape)] = array
    return stacked
