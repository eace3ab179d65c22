"""How much is lost when a unit (a head, an FFN node) is removed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

TINY = float(np.finfo(np.float64).tiny)
"""Stands in for an energy of zero, so that a share of it is a number."""

PORTIONS = 48
"""The units of a layer are eliminated in about this many updates of the whole inverse, since one update for
each unit would take a cubic number of steps for each."""


@dataclass(frozen=True)
class Elimination:
    """Units in the order in which they go, and what their loss costs.

    Attributes:
        order: [removed] units; those that are never removed are not in it.
        errors: [removed] mean squared error of the output once the first i + 1 units went, the rest refitted.
    """

    order: np.ndarray
    errors: np.ndarray


def rows_of(units: np.ndarray) -> np.ndarray:
    """[units, r] the indices of every unit, from the unit (or -1) of every index.

    Raises:
        ValueError: units that own different numbers of indices.
    """
    owned = np.flatnonzero(units >= 0)
    ordered = owned[np.argsort(units[owned], kind="stable")]
    sizes = np.bincount(units[owned])
    if len(set(sizes.tolist())) != 1:
        raise ValueError(f"units own different numbers of indices: {sorted(set(sizes.tolist()))}")
    return ordered.reshape(len(sizes), sizes[0])


def unit_norms(array: np.ndarray, axis: int, units: np.ndarray, size: int) -> np.ndarray:
    """[size] root of the sum of squares of what every unit owns along ``axis``."""
    others = tuple(i for i in range(array.ndim) if i != axis)
    squares = np.sum(np.square(array.astype(np.float64)), axis=others)
    owned = units >= 0
    norms: np.ndarray = np.sqrt(np.bincount(units[owned], weights=squares[owned], minlength=size))
    return norms


def contribution(second_moment: np.ndarray, weight: np.ndarray, units: np.ndarray, size: int) -> np.ndarray:
    """[size] energy that every unit adds to the output: tr(W_gᵀ · E[x_g·x_gᵀ] · W_g).

    For an FFN node that is E[a²]·|w|²: the activation-weighted magnitude, squared.
    """
    energies = np.zeros(size)
    for unit in range(size):
        index = np.flatnonzero(units == unit)
        part = weight[index].astype(np.float64)
        energies[unit] = np.sum(part * (second_moment[np.ix_(index, index)] @ part))
    return energies


def rarely_active(peaks: np.ndarray, z: float) -> np.ndarray:
    """[units] whether x_max < z · s, where s is the standard deviation of the layer's x_max values.

    ``peaks`` [units] are the largest activations that each unit has shown. Fully Quantized Transformer,
    arXiv:1910.10485 v1.
    """
    below: np.ndarray = peaks < z * np.std(peaks)
    return below


def eliminate(
    covariance: np.ndarray, weight: np.ndarray, rows: np.ndarray, count: int, ridge: float
) -> Elimination:
    """Remove ``count`` units one after the other, always the one whose loss the others can replace best.

    The cost of removing unit g while all remaining weights are refitted is tr(W_gᵀ · (H⁻¹_gg)⁻¹ · W_g), and
    weights and inverse are brought up to date after it (optimal brain surgeon, Hassibi and Stork 1993; for
    structures ZipLM, arXiv:2302.04089). The ridge holds back what is refitted, not what is removed: its share
    in the removed weights is taken off. Units go in portions; inside one the choice is exact.

    Args:
        covariance: [features, features] of the linear's inputs about their mean (the bias is refitted too).
        weight: [features, targets].
        rows: [units, r] the features of every unit.
        count: how many units to remove, at most all but one.
        ridge: added to the diagonal, in units of its mean.
    """
    features = len(covariance)
    spread = float(np.trace(covariance)) / features
    # Inputs that never vary are a constant, which the bias takes over at no cost: any order is as good.
    if spread <= 0.0:
        return Elimination(np.arange(count), np.zeros(count))
    inverse = np.linalg.inv(covariance + ridge * spread * np.eye(features))
    weight = weight.astype(np.float64)
    free = ridge * spread * np.sum(weight[rows] ** 2, axis=(1, 2))
    alive = np.arange(len(rows))
    portion = max(1, len(rows) // PORTIONS)
    order: list[int] = []
    errors: list[float] = []
    while len(order) < count:
        take = min(portion, count - len(order))
        costs = _costs(inverse, weight, rows) - free[alive]
        # Removing a unit changes the costs of the others; twice as many candidates leave room for those
        # changes.
        candidates = np.argsort(costs, kind="stable")[: 2 * take]
        chosen, paid = _greedy(inverse, weight, rows[candidates], free[alive[candidates]], take)
        gone = candidates[chosen]
        total = errors[-1] if errors else 0.0
        errors.extend((total + np.cumsum(paid)).tolist())
        order.extend(alive[gone].tolist())
        inverse, weight, rows = _without(inverse, weight, rows, gone)
        alive = np.delete(alive, gone)
    return Elimination(np.array(order, np.int64), np.array(errors))


def _without(
    inverse: np.ndarray, weight: np.ndarray, rows: np.ndarray, gone: np.ndarray
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Inverse, refitted weight and rows of what is left without the units ``gone``."""
    out = rows[gone].ravel()
    rest = np.delete(np.arange(len(inverse)), out)
    place = np.full(len(inverse), -1)
    place[rest] = np.arange(len(rest))
    across = np.linalg.solve(inverse[np.ix_(out, out)], inverse[np.ix_(out, rest)])
    smaller = inverse[np.ix_(rest, rest)] - inverse[np.ix_(rest, out)] @ across
    return smaller, weight[rest] - across.T @ weight[out], place[np.delete(rows, gone, axis=0)]


def _greedy(
    inverse: np.ndarray, weight: np.ndarray, rows: np.ndarray, free: np.ndarray, take: int
) -> tuple[list[int], list[float]]:
    """Choose ``take`` of the units in ``rows`` one by one; only the block of their features matters."""
    flat = rows.ravel()
    block, part = inverse[np.ix_(flat, flat)], weight[flat]
    local = np.arange(len(flat)).reshape(rows.shape)
    alive = np.ones(len(rows), bool)
    chosen: list[int] = []
    paid: list[float] = []
    for _ in range(take):
        left = np.flatnonzero(alive)
        costs = _costs(block, part, local[left]) - free[left]
        best = int(np.argmin(costs))
        gone = local[left[best]]
        # When a unit leaves H, the inverse of the rest is a Schur complement in the old inverse: H is never
        # inverted again.
        solved = np.linalg.solve(block[np.ix_(gone, gone)], block[gone])
        part = part - solved.T @ part[gone]
        block = block - block[:, gone] @ solved
        alive[left[best]] = False
        chosen.append(int(left[best]))
        # Taking the share of the ridge off may leave less than nothing where a loss is replaced fully.
        paid.append(max(float(costs[best]), 0.0))
    return chosen, paid


def _costs(inverse: np.ndarray, weight: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """[units] tr(W_gᵀ · (H⁻¹_gg)⁻¹ · W_g)."""
    parts = weight[rows]
    blocks = inverse[rows[:, :, None], rows[:, None, :]]
    # An FFN node is one feature: a division is much faster than thousands of solves of size one.
    if rows.shape[1] == 1:
        scalar: np.ndarray = np.sum(parts * parts, axis=(1, 2)) / blocks[:, 0, 0]
        return scalar
    costs: np.ndarray = np.sum(parts * np.linalg.solve(blocks, parts), axis=(1, 2))
    return costs


def eliminate_together(
    covariances: Sequence[np.ndarray], weights: Sequence[np.ndarray], count: int, ridge: float
) -> np.ndarray:
    """[count] features that go, in their order, of several linears that all lose the same ones.

    As in :func:`eliminate`, with the cost of a feature summed over the linears, each as a share of the energy
    that its output has. Features go in portions.

    Args:
        covariances: for each linear [features, features] of its inputs about their mean.
        weights: for each linear [features, targets].
        count: how many features to remove, at most all but one.
        ridge: added to each diagonal, in units of its mean.
    """
    parts = [
        _Losing.of(covariance, weight.astype(np.float64), ridge)
        for covariance, weight in zip(covariances, weights, strict=True)
        if np.trace(covariance) > 0
    ]
    alive = np.arange(len(weights[0]))
    portion = max(1, len(alive) // PORTIONS)
    order: list[int] = []
    while len(order) < count:
        take = min(portion, count - len(order))
        costs = sum((part.costs for part in parts), np.zeros(len(alive)))
        gone = np.argsort(costs, kind="stable")[:take]
        order.extend(alive[gone].tolist())
        alive = np.delete(alive, gone)
        for part in parts:
            part.remove(gone)
    return np.array(order, np.int64)


class _Losing:
    """One of several linears that lose the same features."""

    def __init__(self, inverse: np.ndarray, weight: np.ndarray, free: np.ndarray, energy: float) -> None:
        self._inverse, self._weight, self._free, self._energy = inverse, weight, free, energy

    @classmethod
    def of(cls, covariance: np.ndarray, weight: np.ndarray, ridge: float) -> _Losing:
        """Before anything went."""
        held = ridge * float(np.trace(covariance)) / len(covariance)
        inverse = np.linalg.inv(covariance + held * np.eye(len(covariance)))
        energy = float(np.sum(weight * (covariance @ weight)))
        return cls(inverse, weight, held * np.sum(weight**2, axis=1), max(energy, TINY))

    @property
    def costs(self) -> np.ndarray:
        """[features left] what the loss of each costs, as a share of the energy of the output."""
        rows = np.arange(len(self._weight))[:, None]
        costs: np.ndarray = (_costs(self._inverse, self._weight, rows) - self._free) / self._energy
        return costs

    def remove(self, gone: np.ndarray) -> None:
        """Take features away, and refit the others."""
        rows = np.arange(len(self._weight))[:, None]
        self._inverse, self._weight, _ = _without(self._inverse, self._weight, rows, gone)
        self._free = np.delete(self._free, gone)
