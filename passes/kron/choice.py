"""The factors that meet a wish for one weight, or why there are none."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from graphcompress.numerics.kronecker import Factors, Split
from graphcompress.passes.kron.fit import FittedFactors, fit
from graphcompress.passes.kron.rows import RowProblem
from graphcompress.passes.kron.search import Estimate, Found, ranks_within, search

REPORTED_RATIO = 0.5
"""A weight that is left alone is reported with its error at this share removed."""

LEAST_RATIO = 0.25
"""Factors that are chosen for their error remove at least this share: less is not worth any error."""

VOTERS = 8
"""At most so many experts of a stack, evenly spaced, are searched for the split and rank that all share."""

Solve = Callable[[Split, int], FittedFactors]


@dataclass(frozen=True)
class Wish:
    """What is wanted of the factors of one weight.

    Attributes:
        splits: factorisations to choose from.
        rank: number of terms, or None for as many as the rest needs.
        ratio: share of the parameters to remove, or None.
        max_error: largest relative output error, or None: without ``ratio`` a single split is taken as it is.
    """

    splits: tuple[Split, ...]
    rank: int | None = None
    ratio: float | None = None
    max_error: float | None = None

    def budget(self, size: int) -> int:
        """Most parameters of the factors of a weight of ``size``."""
        ratio = REPORTED_RATIO if self.ratio is None else self.ratio
        return min(size - 1, int(size * (1 - ratio)))

    @staticmethod
    def limit(size: int) -> int:
        """Most parameters of factors that are chosen for their error."""
        return min(size - 1, int(size * (1 - LEAST_RATIO)))

    @property
    def decided(self) -> bool:
        """Whether split and rank are given, so that nothing is searched."""
        return (
            len(self.splits) == 1 and self.ratio is None and (self.rank is not None or self.max_error is None)
        )


@dataclass(frozen=True)
class Factored:
    """Factors and their relative output error; or none, the reason, and the error they would have had.

    ``needs`` are values of options at which there would be factors.
    """

    factors: Factors | None
    error: float | None = None
    reason: str = ""
    needs: Mapping[str, float] = field(default_factory=dict)


def choose_linear(weight: np.ndarray, gram: np.ndarray | None, wish: Wish) -> Factored:
    """Factors of a linear's ``weight`` [in, out] for inputs with second moment ``gram`` (None: all alike)."""

    def solve(split: Split, rank: int) -> FittedFactors:
        return fit(weight, split, rank, gram)

    if wish.decided:
        return _as_told(weight.size, wish, solve)
    found = search(
        weight,
        gram,
        wish.splits,
        budget=wish.budget(weight.size),
        limit=wish.limit(weight.size),
        max_error=wish.max_error if wish.ratio is None else None,
        rank=wish.rank,
        # Without a ratio the best serves to report an error alone; with one, nothing is sought within an
        # error.
        keep=(2, 1) if wish.ratio is None else (1, 3),
    )
    return _choose(weight.size, wish, found, solve)


@dataclass(frozen=True)
class FactoredExperts:
    """Factors of every expert, of one split and rank, and their joint error; else as :class:`Factored`."""

    factors: tuple[Factors, ...]
    error: float | None = None
    reason: str = ""
    needs: Mapping[str, float] = field(default_factory=dict)


def choose_experts(stack: np.ndarray, gram: np.ndarray | None, wish: Wish) -> FactoredExperts:
    """Factors of every weight of a ``stack`` [experts, in, out] for inputs with second moment ``gram``.

    Some experts are searched one by one; the split that most of them would take, with the largest rank that
    one of those wants of it, is that of all.
    """
    voters = np.linspace(0, len(stack) - 1, min(VOTERS, len(stack))).astype(int)
    votes = [choose_linear(stack[voter], gram, wish) for voter in voters]
    wanted = [vote.factors for vote in votes if vote.factors is not None]
    if 2 * len(wanted) <= len(votes):
        refused = [vote for vote in votes if vote.factors is None]
        worst = max(refused, key=lambda vote: vote.error or 0.0)
        return FactoredExperts((), worst.error, worst.reason, worst.needs)
    counts = Counter(each.split for each in wanted)
    split = max(counts, key=lambda each: (counts[each], -each.term_parameters))
    rank = max(each.rank for each in wanted if each.split == split)
    fits = [fit(weight, split, rank, gram) for weight in stack]
    error = _joint_error(stack, gram, fits)
    if wish.max_error is not None and error > wish.max_error:
        smaller = stack[0].size / fits[0].factors.parameters
        reason = f"its error at {smaller:.0f} × smaller is above max_error {wish.max_error:g}"
        return FactoredExperts((), error, reason)
    return FactoredExperts(tuple(each.factors for each in fits), error)


def _joint_error(stack: np.ndarray, gram: np.ndarray | None, fits: Sequence[FittedFactors]) -> float:
    """Relative error of the outputs of all experts together."""
    wide = stack.astype(np.float64)
    seen = wide if gram is None else gram @ wide
    signals = np.sum(wide * seen, axis=(1, 2))
    errors = np.array([each.error for each in fits])
    return float(np.sqrt(np.sum(signals * errors**2) / max(float(signals.sum()), 1e-300)))


def choose_embedding(table: np.ndarray, counts: np.ndarray | None, wish: Wish) -> Factored:
    """Factors A [v, d/n] ⊗ B [1, n] of ``table`` [v, d]; ``counts`` [v] tells how often a row is read."""
    problem = RowProblem(table, counts)
    if wish.decided:
        return _as_told(table.size, wish, problem.solve)
    budget = wish.budget(table.size)
    found = Found(keep_within=2, keep_best=3)
    for split in wish.splits:
        errors = problem.errors(split)
        if useful := ranks_within(split, budget, wish.rank):
            found.add_best(Estimate(float(errors[useful - 1]), split, useful))
        smaller = ranks_within(split, wish.limit(table.size), wish.rank)
        if wish.max_error is not None and wish.ratio is None and smaller:
            found.add_smallest(split, errors, smaller, wish.max_error, wish.rank)
    return _choose(table.size, wish, found, problem.solve)


def _as_told(size: int, wish: Wish, solve: Solve) -> Factored:
    split, rank = wish.splits[0], wish.rank or 1
    if ranks_within(split, size - 1, rank) == 0:
        largest = ranks_within(split, size - 1, None)
        needs = {"needs_rank": float(largest)} if largest else {}
        return Factored(None, None, f"{rank} terms of {split} are not smaller than the weight", needs)
    solved = solve(split, rank)
    return _judged(size, wish, solved)


def _choose(size: int, wish: Wish, found: Found, solve: Solve) -> Factored:
    if wish.ratio is None and wish.max_error is not None:
        smallest = _smallest(size, wish, found, solve)
        if smallest is not None:
            return Factored(smallest.factors, smallest.error)
    if not found.best:
        least = min(((wish.rank or 1) * split.term_parameters for split in wish.splits), default=size)
        # Rounded down, so that there are factors at the ratio that is told.
        reached = math.floor(1000 * (1 - least / size)) / 1000
        needs = {"needs_ratio": reached} if wish.ratio is not None and reached > 0 else {}
        return Factored(None, None, "no factorisation of its sizes is small enough", needs)
    tried = found.best if wish.ratio is not None else found.best[:1]
    solved = min((solve(each.split, each.rank) for each in tried), key=lambda each: each.error)
    if wish.ratio is None:
        return _refused(size, wish, solved)
    return _judged(size, wish, solved)


def _smallest(size: int, wish: Wish, found: Found, solve: Solve) -> FittedFactors | None:
    """The fewest parameters within the wanted error; ranks grow a little where an estimate was short."""
    best: FittedFactors | None = None
    for estimate in found.within:
        rank = estimate.rank
        for _ in range(3):
            limit = wish.limit(size) if best is None else best.factors.parameters - 1
            if ranks_within(estimate.split, limit, rank) == 0:
                break
            solved = solve(estimate.split, rank)
            if solved.error <= (wish.max_error or 0.0):
                best = solved
                break
            if wish.rank is not None:
                break
            # The estimate counts the separable part of the second moment alone, and may be a few terms short.
            rank = math.ceil(rank * 1.1)
    return best


def _judged(size: int, wish: Wish, solved: FittedFactors) -> Factored:
    if wish.max_error is not None and solved.error > wish.max_error:
        return _refused(size, wish, solved)
    return Factored(solved.factors, solved.error)


def _refused(size: int, wish: Wish, solved: FittedFactors) -> Factored:
    smaller = size / solved.factors.parameters
    reason = f"its error at {smaller:.0f} × smaller is above max_error {wish.max_error:g}"
    return Factored(None, solved.error, reason)
