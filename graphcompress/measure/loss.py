"""What the outputs of a changed model lose: one number by which changes are compared."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from graphcompress.files.parts import is_cache
from graphcompress.files.runtime import Feed
from graphcompress.measure.tokens import scores_tokens
from graphcompress.measure.verify import is_read_last
from graphcompress.numerics.metrics import divergences
from graphcompress.numerics.spread import NO_NUMBER, output_energies, squared_error


class OutputLoss:
    """The distance of outputs from those that a model gave before, summed over all samples.

    Squared error as a share of the outputs' spread, summed over the outputs. Of a model that says how likely
    tokens are, and nothing else, it is the mean divergence of all tokens in nats: by so much the likelihood
    of text becomes worse. Keys and values for the next step, hidden states and attention maps count only
    where nothing else is there.
    """

    def __init__(self, before: Sequence[Feed]) -> None:
        """``before`` are the outputs on all samples, one feed each, without those at padding."""
        self._units = output_energies(before)
        read = self.of_interest(self._units)
        self.by_token = bool(read) and all(scores_tokens(name, before[0][name]) for name in read)
        """Whether it is a divergence."""
        if self.by_token:
            self._units |= {name: float(sum(count_rows(each[name]) for each in before)) for name in read}
        self.read = frozenset(read)
        """The outputs that count."""

    def of_interest(self, names: Iterable[str]) -> list[str]:
        """Those of some outputs that count where the others are not there."""
        return _read(name for name in names if name in self._units)

    def __call__(self, after: Feed, before: Feed, names: Iterable[str]) -> float:
        """What the outputs ``names`` of one feed add to what all feeds lose."""
        total = 0.0
        for name in names:
            was, now = before[name], after[name]
            if self.by_token and name in self.read:
                rows = divergences(*(each.reshape(-1, each.shape[-1]) for each in (was, now)))
                lost = float(rows.sum()) if np.isfinite(rows).all() else NO_NUMBER
            else:
                lost = squared_error(now, was)
            total += lost / self._units[name]
        return total

    def told(self, loss: float) -> str:
        """A sentence for the user."""
        if self.by_token:
            return f"scores of tokens diverge by {loss:.3g} nats on held-out samples"
        return f"the squared error of the outputs on held-out samples is {loss:.3g} of their spread"


def rows_read(found: Mapping[str, np.ndarray]) -> int:
    """Rows of the output that has fewest, among those that count."""
    return min((count_rows(found[name]) for name in _read(found)), default=0)


def count_rows(array: np.ndarray) -> int:
    """Rows of an array [..., features]."""
    return array.size // max(array.shape[-1], 1) if array.ndim else 1


def _read(names: Iterable[str]) -> list[str]:
    """The outputs that somebody reads: none for the next step or for looking inside, if there are others."""
    every = list(names)
    return [name for name in every if not is_cache(name) and not is_read_last(name)] or every
