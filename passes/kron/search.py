"""Which factorisation and which rank for a weight: all of them are looked at, few are fitted.

All ranks of a split come from one set of singular values. Inputs count through the separable part G1 ⊗ G2 of
their second moment, in whose norm the nearest factors have a closed form (exact for low rank). A split is
left without singular values when the first two moments of its spectrum prove that it cannot be among the
best.
"""

from __future__ import annotations

import bisect
from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import scipy.linalg

from graphcompress.numerics.kronecker import Split, arrange, small_gram
from graphcompress.passes.kron.fit import separable_roots, whiten

SLACK = 1.3
"""Where alternating least squares can still help, estimates up to this times the wanted error are kept."""


@dataclass(frozen=True, order=True)
class Estimate:
    """A split and a rank with the relative output error to expect."""

    error: float
    split: Split
    rank: int

    @property
    def parameters(self) -> int:
        """Stored parameters."""
        return self.rank * self.split.term_parameters


@dataclass
class Found:
    """What a search returns.

    Attributes:
        keep_within, keep_best: most estimates kept of each kind; keeping few saves work.
        within: estimates within the wanted error, fewest parameters first.
        best: estimates within the wanted number of parameters, smallest error first.
    """

    keep_within: int
    keep_best: int
    within: list[Estimate] = field(default_factory=list)
    best: list[Estimate] = field(default_factory=list)

    def add_within(self, estimate: Estimate) -> None:
        """Keep ``estimate`` when it is among those with the fewest parameters."""
        bisect.insort(self.within, estimate, key=lambda each: (each.parameters, each))
        del self.within[self.keep_within :]

    def add_best(self, estimate: Estimate) -> None:
        """Keep ``estimate`` when it is among those with the smallest error."""
        bisect.insort(self.best, estimate)
        del self.best[self.keep_best :]

    def add_smallest(
        self, split: Split, errors: np.ndarray, largest: int, max_error: float, rank: int | None
    ) -> None:
        """Keep the smallest rank up to ``largest`` (or ``rank``) whose error is within ``max_error``."""
        fitting = np.flatnonzero(errors[:largest] <= max_error)
        if fitting.size == 0 or (rank is not None and errors[rank - 1] > max_error):
            return
        least = rank or int(fitting[0]) + 1
        self.add_within(Estimate(float(errors[least - 1]), split, least))

    @property
    def worst_kept_error(self) -> float:
        """Above this an estimate cannot be among the best."""
        return self.best[-1].error if len(self.best) == self.keep_best else np.inf

    @property
    def most_kept_parameters(self) -> float:
        """From this on an estimate cannot be among the smallest."""
        return self.within[-1].parameters if len(self.within) == self.keep_within else np.inf


def search(
    weight: np.ndarray,
    gram: np.ndarray | None,
    candidates: Iterable[Split],
    *,
    budget: int,
    limit: int,
    max_error: float | None,
    rank: int | None = None,
    keep: tuple[int, int] = (3, 3),
) -> Found:
    """The smallest factors within ``max_error``, and the best ones of at most ``budget`` parameters.

    The smallest ones have at most ``limit`` parameters. ``keep`` estimates of the two kinds are returned.

    ``gram`` [in, in] is the second moment of the input (None: all directions count alike). ``rank`` is fixed
    when given; ``max_error`` None asks for the best only. Low rank comes first, since a good first find saves
    work.
    """
    found = Found(*keep)
    ordered = sorted(candidates, key=lambda split: (split.n2 * split.m1, split))
    white: dict[int, np.ndarray] = {}
    for split in ordered:
        if split.n1 not in white:
            white[split.n1] = _whitened(weight, gram, split)
        _look_at(found, white[split.n1], split, budget, limit, max_error, rank)
    return found


def ranks_within(split: Split, parameters: float, rank: int | None) -> int:
    """The largest rank of ``split`` with at most ``parameters``, or 0; ``rank`` or 0 when it is given."""
    largest = min(int(parameters // split.term_parameters), split.full_rank)
    if rank is None:
        return largest
    return rank if rank <= largest else 0


def captured_at_most(gram: np.ndarray, rank: int) -> float:
    """Upper bound on the share of the trace of ``gram`` in its ``rank`` largest eigenvalues.

    From the mean and the variance of all eigenvalues: the mean of any r of n numbers exceeds their mean by at
    most the standard deviation times √((n - r) / r).
    """
    side, trace = len(gram), float(np.trace(gram))
    if rank >= side or trace <= 0.0:
        return 1.0
    mean = 1.0 / side
    variance = max(float(np.vdot(gram, gram)) / trace**2 / side - mean * mean, 0.0)
    return min(1.0, rank * mean + float(np.sqrt(rank * (side - rank) * variance)))


def _whitened(weight: np.ndarray, gram: np.ndarray | None, split: Split) -> np.ndarray:
    if gram is None:
        return np.asarray(weight, np.float32)
    left1, left2 = separable_roots(gram, split)
    return whiten(np.asarray(weight, np.float64), split, left1, left2).astype(np.float32)


def _look_at(
    found: Found,
    white: np.ndarray,
    split: Split,
    budget: int,
    limit: int,
    max_error: float | None,
    rank: int | None,
) -> None:
    # With a side of one the nearest factors are optimal in this norm; elsewhere the fit that follows still
    # lowers the error.
    allowed = 0.0 if max_error is None else max_error * (1.0 if 1 in (split.n1, split.n2) else SLACK)
    most = min(limit, found.most_kept_parameters - 1)
    smaller = 0 if max_error is None else ranks_within(split, most, rank)
    useful = ranks_within(split, budget, rank)
    if smaller == 0 and useful == 0:
        return
    gram = small_gram(arrange(white, split))
    # A bound from two traces costs far less than the eigenvalues, and rules most splits out.
    hopeful = smaller > 0 and 1 - captured_at_most(gram, smaller) <= allowed**2
    better = useful > 0 and 1 - captured_at_most(gram, useful) < found.worst_kept_error**2
    if not hopeful and not better:
        return
    # Rounding may leave small negative eigenvalues of a matrix that has none.
    values = np.maximum(scipy.linalg.eigvalsh(gram, check_finite=False)[::-1].astype(np.float64), 0.0)
    tail = 1 - np.cumsum(values) / max(float(values.sum()), 1e-300)
    errors = np.sqrt(np.maximum(tail, 0.0))
    if better:
        found.add_best(Estimate(float(errors[useful - 1]), split, useful))
    if hopeful:
        found.add_smallest(split, errors, smaller, allowed, rank)
