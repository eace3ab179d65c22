"""Runs a graph on samples and hands chosen values to observers that keep statistics in bounded memory."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import groupby
from typing import Protocol, TypeVar

import numpy as np
import onnx_ir as ir

from graphcompress.data.load import Sample, Samples
from graphcompress.data.samples import padding_mask
from graphcompress.files.runtime import Feed
from graphcompress.files.scratch import on_disk
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.memory import MOST, bytes_of, for_statistics, sizes_of
from graphcompress.plugin.context import Progress, no_progress

T = TypeVar("T")

MEMORY_BYTES = 256_000_000
"""Values that are fetched together for one batch take at most this many bytes; more values take more
runs."""


TOKENS_PER_FEATURE = 2
"""Tokens for each feature that are enough: with as many tokens as features a fit repeats their noise."""


def too_few(what: str, seen: Iterable[tuple[int, int]]) -> str:
    """A sentence about fits of too little data and the count that would do; nothing where there is enough.

    ``seen`` has the features of each fit and the tokens that it was made from.
    """
    short = [(features, tokens) for features, tokens in seen if tokens < TOKENS_PER_FEATURE * features]
    if not short:
        return ""
    features, tokens = max(short, key=lambda pair: pair[0] / max(pair[1], 1))
    enough = TOKENS_PER_FEATURE * features
    return f"too little data: {what} of {features:,} features saw {tokens:,} tokens; {enough:,} would do"


class Observer(Protocol):
    """Keeps statistics of one value."""

    def update(self, array: np.ndarray) -> None:
        """Take in the value of one batch: [tokens, features] where it was [batch, sequence, features]."""


def observe(
    model: Model,
    observers: Mapping[ir.Value, Observer],
    samples: Samples,
    *,
    progress: Progress = no_progress,
    text: str = "calibrate",
    optimize: bool = True,
) -> None:
    """Run ``model`` on all ``samples`` and update the observer of every value; padding never counts.

    A batch is made of samples of equal length, so nothing is padded here; positions that a mask in the
    samples marks as padding are left out. Memory is bounded by one batch, whatever the number and the length
    of the samples: a long one is seen in windows, where the model takes those. Statistics are the same
    whatever else is observed. Without ``optimize`` nothing is fused: int8 products are computed in float, so
    they cannot saturate.
    """
    samples = for_statistics(samples, model)
    sizes = sizes_of(model, samples, samples.batch_size(MOST))
    runs = list(portions(observers, lambda value: bytes_of(value, sizes), MEMORY_BYTES))
    batches = list(equal_batches(samples))
    total = len(runs) * len(batches)
    for number, values in enumerate(runs):
        # Packed weights would be a second copy of all of them, and batches of many tokens gain little by it.
        with Runner(model, values, optimize=optimize, lent=True) as runner:
            for step, indices in enumerate(batches):
                progress(text, number * len(batches) + step, total)
                feed = samples.batch(indices)
                for value, array in zip(values, runner(feed).values(), strict=True):
                    observers[value].update(real_tokens(array, feed))
    progress(text, total, total)


def equal_batches(samples: Samples) -> Iterator[list[int]]:
    """Indices of at most ``MOST`` samples whose arrays have equal shapes, the shortest first."""

    def shapes(index: int) -> tuple[tuple[int, ...], ...]:
        return _shapes(samples.feeds[index])

    order = sorted(samples.order(by_length=True), key=lambda index: (max(shapes(index)), shapes(index)))
    for _, group in groupby(order, key=shapes):
        indices = list(group)
        size = samples.batch_size(MOST)
        for start in range(0, len(indices), size):
            yield indices[start : start + size]


def equal_feeds(model: Model, samples: Samples) -> list[Feed]:
    """The batches for statistics, with large arrays on disk: of equal shapes, a long sample in windows."""
    chosen = for_statistics(samples, model)
    return on_disk(map(chosen.batch, equal_batches(chosen)))


def real_tokens(array: np.ndarray, feed: Feed) -> np.ndarray:
    """[batch, sequence, …] without the positions that the feed's mask marks as padding: [tokens, …].

    Also understood are [sequence, batch, …] and [batch · sequence, features]. Without a mask, or for a
    value of another layout, batch and sequence are merely joined (3-D) or the array is returned as it is.
    """
    real = padding_mask(feed)
    if real is None or real.all():
        return array.reshape(-1, array.shape[-1]) if array.ndim == 3 else array
    for layout in (real, real.T):
        if array.ndim >= 3 and array.shape[:2] == layout.shape:
            return np.asarray(array[layout])
    if array.ndim == 2 and len(array) == real.size > len(real):
        return np.asarray(array[real.ravel()])
    return array.reshape(-1, array.shape[-1]) if array.ndim == 3 else array


def _shapes(sample: Sample) -> tuple[tuple[int, ...], ...]:
    return tuple(array.shape for array in sample.values())


def portions(items: Iterable[T], size_bytes: Callable[[T], int], limit_bytes: int) -> Iterator[list[T]]:
    """``items`` in runs of at most ``limit_bytes``; one that is larger makes a run of its own."""
    portion: list[T] = []
    room = limit_bytes
    for item in items:
        size = size_bytes(item)
        if portion and size > room:
            yield portion
            portion, room = [], limit_bytes
        portion.append(item)
        room -= size
    if portion:
        yield portion
