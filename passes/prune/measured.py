"""What removing units costs where zeroing them is something else: a block is run without them."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from graphcompress.cutting.cut import cut
from graphcompress.cutting.excerpt import excerpt, twin_group
from graphcompress.data.load import Samples
from graphcompress.files.runtime import Feed
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.calibrate import real_tokens
from graphcompress.measure.memory import MOST, bounded
from graphcompress.passes.prune.blocks import Block
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter

MEMORY_BYTES = 100_000_000
"""What goes into a block and comes out of it is kept for so many bytes of samples."""


@dataclass(frozen=True)
class Errors:
    """Root mean square errors, as shares of the spread of what they are errors of.

    Attributes:
        reader: of what the linears give that read the units.
        shown: the largest one of all else that is made of the units; 0 where there is nothing else.
    """

    reader: float
    shown: float

    @property
    def worst(self) -> float:
        """The larger one."""
        return max(self.reader, self.shown)


class Probe:
    """A block as a model of its own, and what goes into it and comes out of it on samples."""

    def __init__(self, model: Model, block: Block, samples: Samples) -> None:
        self._readers = [reader.output for reader in block.readers]
        exits = [*self._readers, *block.shown]
        entries, self._part = excerpt(model, block.group, exits)
        self._group = block.group
        self._names = [value.name or "" for value in exits]
        self._runs: list[_Run] = []
        room = MEMORY_BYTES
        with Runner(model, [*entries, *exits]) as runner:
            for feed in bounded(samples, model).batches(MOST, by_length=True):
                found = runner(feed)
                self._runs.append(
                    _Run(feed, {value.name or "": found[value.name or ""] for value in entries}, found)
                )
                room -= sum(array.nbytes for array in found.values())
                if room < 0:
                    break

    def errors(self, removed: Sequence[int] | np.ndarray) -> Errors:
        """Errors once the units ``removed`` are gone; without end where the block alone cannot be cut."""
        twin = self._part.clone()
        group = twin_group(twin, self._group)
        if group is None:
            return Errors(np.inf, np.inf)
        keep = np.ones(group.size, bool)
        keep[np.asarray(removed, np.int64)] = False
        with Rewriter(twin, Context()) as rw:
            cut(rw, {group: keep})
        spreads = [_Spread() for _ in self._names]
        with Runner(twin) as runner:
            for run in self._runs:
                outputs = runner(run.entries)
                for name, spread in zip(self._names, spreads, strict=True):
                    spread.update(*(real_tokens(array[name], run.feed) for array in (run.values, outputs)))
        errors = [spread.error for spread in spreads]
        readers = len(self._readers)
        return Errors(max(errors[:readers]), max(errors[readers:], default=0.0))


@dataclass(frozen=True)
class _Run:
    """One batch of samples: what the model is given, and what goes into the block and comes out of it."""

    feed: Feed
    entries: Feed
    values: Mapping[str, np.ndarray]


@dataclass
class _Spread:
    """Squared differences of arrays [tokens, …], and their squares about the mean of each feature."""

    difference: float = 0.0
    sums: dict[tuple[int, ...], list[np.ndarray]] = field(default_factory=lambda: defaultdict(list))

    def update(self, expected: np.ndarray, actual: np.ndarray) -> None:
        """Take in one batch."""
        wide = expected.astype(np.float64)
        self.difference += float(np.sum(np.square(actual - wide)))
        parts = [np.full(wide.shape[1:], len(wide)), wide.sum(axis=0), np.square(wide).sum(axis=0)]
        known = self.sums[wide.shape[1:]]
        self.sums[wide.shape[1:]] = [a + b for a, b in zip(known, parts, strict=True)] if known else parts

    @property
    def error(self) -> float:
        """Root of the mean squared difference over that of the spread."""
        parts = list(self.sums.values())
        # Axes that vary are no features, such as the keys of a map: each place of them would be seen a few
        # times, and spread about a mean that is almost itself.
        if len(parts) > 1 or np.min(parts[0][0], initial=2) < 2:
            parts = [[np.sum([np.sum(each) for each in column]) for column in zip(*parts, strict=True)]]
        energy = sum(float(np.sum(squares - np.square(total) / count)) for count, total, squares in parts)
        return float(np.sqrt(self.difference / max(energy, float(np.finfo(np.float64).tiny))))
