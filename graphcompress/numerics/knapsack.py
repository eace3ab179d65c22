"""The cheapest choice of one option for each block within a budget."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

GRAINS = 4000
"""The budget is divided into so many parts, and every price is rounded up to whole parts: a plan never costs
more than the budget, and wastes at most half a part for each block on average."""


def cheapest(losses: Sequence[np.ndarray], prices: Sequence[np.ndarray], budget: float) -> list[int] | None:
    """The option of every block so that all prices together are within ``budget`` and all losses are least.

    Exact by dynamic programming over the rounded prices. Of options that lose alike the first is taken, which
    makes the same choice everywhere. None where not even the lowest prices are within the budget.

    Args:
        losses: for every block [options], what each loses.
        prices: for every block [options], what each costs, at least 0.
        budget: for all blocks together.
    """
    if budget <= 0.0:
        return None
    grain = budget / GRAINS
    # A price that is a whole number of grains must not become one more by rounding.
    costs = [
        np.ceil(np.asarray(price) / grain - 1e-9).clip(0, GRAINS + 1).astype(np.int64) for price in prices
    ]
    best = np.zeros(GRAINS + 1)
    taken: list[np.ndarray] = []
    for loss, cost in zip(losses, costs, strict=True):
        offers = np.full((len(loss), GRAINS + 1), np.inf)
        for option, (lost, paid) in enumerate(zip(loss, cost, strict=True)):
            if paid <= GRAINS:
                offers[option, paid:] = best[: GRAINS + 1 - paid] + lost
        taken.append(offers.argmin(axis=0))
        best = offers.min(axis=0)
    if not np.isfinite(best[GRAINS]):
        return None
    left, chosen = GRAINS, list[int]()
    for options, cost in zip(reversed(taken), reversed(costs), strict=True):
        chosen.append(int(options[left]))
        left -= int(cost[chosen[-1]])
    return chosen[::-1]
