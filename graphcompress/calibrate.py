"""Runs a graph on samples and hands chosen values to observers that keep streaming statistics in bounded memory."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Protocol

import numpy as np
import onnx_ir as ir

from graphcompress.base import Progress, no_progress
from graphcompress.data import Samples
from graphcompress.model import Model
from graphcompress.runtime import Feed, Runner

BATCH = 8
MEMORY_BYTES = 256_000_000
"""Largest size of the values fetched together, for one batch of 128 tokens; more values take more runs."""


class Observer(Protocol):
    """Keeps statistics of one value."""

    def update(self, array: np.ndarray) -> None:
        """Take in the value of one batch: [tokens, features] for a value [batch, sequence, features], else as it is."""


def observe(
    model: Model,
    observers: Mapping[ir.Value, Observer],
    samples: Samples,
    *,
    progress: Progress = no_progress,
    text: str = "calibrate",
) -> None:
    """Run ``model`` on all ``samples`` and update the observer of every value; padded positions are left out.

    Batches are made of samples of similar length. Statistics are the same whatever else is observed.
    """
    portions = _portions(list(observers))
    order = samples.order(by_length=True)
    starts = range(0, len(order), BATCH)
    for number, values in enumerate(portions):
        with Runner(model, values) as runner:
            for step, start in enumerate(starts):
                progress(text, number * len(starts) + step, len(portions) * len(starts))
                feed = samples.batch(order[start : start + BATCH])
                for value, array in zip(values, runner(feed).values(), strict=True):
                    observers[value].update(real_tokens(array, feed))
    progress(text, len(portions) * len(starts), len(portions) * len(starts))


def real_tokens(array: np.ndarray, feed: Feed) -> np.ndarray:
    """[batch, sequence, …] without the positions that the feed's attention mask marks as padding: [tokens, …].

    Without a mask, or for a value of another layout, batch and sequence are merely joined (3-D) or the array is
    returned as it is.
    """
    mask = next((m for name, m in feed.items() if "mask" in name and m.ndim == 2), None)
    if mask is not None and array.ndim >= 3 and array.shape[:2] == mask.shape:
        return array[mask.astype(bool)]
    return array.reshape(-1, array.shape[-1]) if array.ndim == 3 else array


def _portions(values: Sequence[ir.Value]) -> list[list[ir.Value]]:
    portions: list[list[ir.Value]] = []
    room = 0
    for value in values:
        width = 1
        for dim in value.shape or ():
            width *= dim if isinstance(dim, int) else 1
        size = BATCH * 128 * 4 * width
        if not portions or size > room:
            portions.append([])
            room = MEMORY_BYTES
        portions[-1].append(value)
        room -= size
    return portions
