"""Which samples make which step: the same for every number of processes, and after an interruption."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import lru_cache

import numpy as np

from graphcompress.data.samples import Samples

POOL, POOLS = 32, 8
"""So many batches are sorted by length together, to pad little; so many pools at least, to mix well."""


class Batches:
    """Global batches of ``size`` samples, step by step, epoch after epoch, in an order from ``seed``."""

    def __init__(self, samples: Samples, size: int, seed: int) -> None:
        self.size = min(size, len(samples))
        self.per_epoch = math.ceil(len(samples) / self.size)
        self._lengths = np.array([max((a.size for a in feed.values()), default=0) for feed in samples.feeds])
        self._seed = seed
        self._epoch = lru_cache(maxsize=1)(self._batches_of)

    def __call__(self, step: int) -> list[int]:
        """Indices of the samples of step ``step``, counted from 0."""
        epoch, position = divmod(step, self.per_epoch)
        return self._epoch(epoch)[position]

    def _batches_of(self, epoch: int) -> list[list[int]]:
        # Anew for each epoch: a run that goes on finds its batches by the number of the step alone.
        rng = np.random.default_rng([self._seed, epoch])
        order = rng.permutation(len(self._lengths))
        batches = []
        together = max(1, min(POOL, self.per_epoch // POOLS)) * self.size
        for start in range(0, len(order), together):
            pool = order[start : start + together]
            # Stable, so that samples of one length stay in their random order, and in the same one on every
            # machine.
            pool = pool[np.argsort(self._lengths[pool], kind="stable")]
            batches += [pool[i : i + self.size].tolist() for i in range(0, len(pool), self.size)]
        # Else every pool would begin with its short samples.
        return [batches[index] for index in rng.permutation(len(batches))]


def parts(indices: Sequence[int], count: int) -> list[list[int]]:
    """``indices`` in ``count`` parts of nearly equal size; some are empty when there are fewer indices."""
    return [part.tolist() for part in np.array_split(np.asarray(indices, dtype=np.int64), count)]
