"""Real tokens: which entries of a value padding has no part in, and how many there are.

An ordinary model reads one text, whose tokens one mask tells. The parts of a model that writes read two: what
is encoded, and what is written after it.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from graphcompress.data.rows import UNLABELLED
from graphcompress.data.samples import Sample
from graphcompress.data.teacher_forced import NEXT

WHOLE = ""
"""The part that an ordinary model is."""

Unit = tuple[str, ...]
"""What a mean is over: () samples, (part,) its tokens, (part, part) pairs of a query and a key."""

ROWS: Unit = ()

Masks = Mapping[str, torch.Tensor]
"""Part → [batch, sequence], true at real tokens; a part without a mask is not there."""


@dataclass(frozen=True)
class Counts:
    """Samples of a global batch, and the real tokens of each, part by part."""

    rows: int
    lengths: Mapping[str, Sequence[int]]

    @classmethod
    def of(cls, feeds: Sequence[Sample]) -> Counts:
        """Counts of samples without their batch dimension."""
        each = [lengths_of(feed) for feed in feeds]
        return cls(len(feeds), {part: [lengths[part] for lengths in each] for part in each[0]})

    def __getitem__(self, unit: Unit) -> int:
        """How many of ``unit`` there are."""
        if not unit:
            return self.rows
        return int(np.prod([self.lengths[part] for part in unit], axis=0).sum())

    @property
    def tokens(self) -> int:
        """Real tokens of the part that answers."""
        return self[tuple(self.lengths)[-1:]]


def lengths_of(feed: Sample) -> dict[str, int]:
    """Part → real tokens of one sample; the part that answers comes last."""
    masks = dict(_masks(feed, 1))
    if masks:
        return {part: int(np.count_nonzero(mask)) for part, mask in masks.items()}
    return {WHOLE: max((len(array) for array in feed.values() if array.ndim), default=1)}


def masks_of(feed: Mapping[str, np.ndarray], device: torch.device | None = None) -> dict[str, torch.Tensor]:
    """Real tokens of a batch."""
    return {part: torch.from_numpy(mask).to(device or "cpu") for part, mask in _masks(feed, 2)}


def _masks(feed: Mapping[str, np.ndarray], axes: int) -> Iterator[tuple[str, np.ndarray]]:
    written = next((name for name in feed if name.endswith(NEXT)), None)
    found = ((name, array != 0) for name, array in feed.items() if "mask" in name and array.ndim == axes)
    if written is None:
        yield from ((WHOLE, mask) for _, mask in list(found)[:1])
        return
    writer = written.removesuffix(NEXT)
    for name, mask in found:
        part = name[: name.rfind("/") + 1]
        if part != writer:
            yield part, mask
    yield writer, feed[written] != UNLABELLED
