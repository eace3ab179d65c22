"""How far outputs spread: the unit in which errors of models are told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np

NO_NUMBER = 1e30
"""What is lost where an answer is infinite or NaN and was a number: worse than any other, and sums of it stay
numbers."""


def output_energies(outputs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Sum of squares about the mean of every feature, of all float outputs; one batch at a time.

    An output whose last axis varies from sample to sample, such as the scores of positions, has one mean.
    Of an output that these samples show in a single row, or in equal ones, it is the sum of its squares: it
    has no spread, and what happens to it counts all the same. Entries that are no numbers have none.
    """
    widths: dict[str, set[int]] = defaultdict(set)
    for each in outputs:
        for name, array in each.items():
            if np.issubdtype(array.dtype, np.floating) and array.ndim:
                widths[name].add(array.shape[-1])
    energies = {
        name: _energy(outputs, name, found.pop() if len(found) == 1 else 1) for name, found in widths.items()
    }
    return {name: energy for name, energy in energies.items() if energy > 0.0}


def squared_error(after: np.ndarray, before: np.ndarray) -> float:
    """Sum of squares of what ``after`` differs by from ``before``, where that is a number."""
    numbers = np.isfinite(before)
    lost = float(np.sum(np.square(after[numbers].astype(np.float64) - before[numbers])))
    return lost if np.isfinite(lost) else NO_NUMBER


def _energy(outputs: Sequence[Mapping[str, np.ndarray]], name: str, features: int) -> float:
    def parts() -> Iterator[np.ndarray]:
        for each in outputs:
            array = each[name].reshape(-1, features).astype(np.float64)
            yield np.where(np.isfinite(array), array, np.nan)

    count = sum(np.isfinite(part).sum(axis=0) for part in parts())
    mean = sum(np.nansum(part, axis=0) for part in parts()) / np.maximum(count, 1)
    spread = sum(float(np.nansum(np.square(part - mean))) for part in parts())
    return spread or sum(float(np.nansum(np.square(part))) for part in parts())
