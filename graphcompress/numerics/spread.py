"""How far outputs spread: the unit in which errors of models are told."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

import numpy as np


def output_energies(outputs: Sequence[Mapping[str, np.ndarray]]) -> dict[str, float]:
    """Sum of squares about the mean of every feature, of all float outputs; one batch at a time.

    Of an output that these samples show in a single row, or in equal ones, it is the sum of its squares: it
    has no spread, and what happens to it counts all the same.
    """
    widths: dict[str, set[int]] = defaultdict(set)
    for each in outputs:
        for name, array in each.items():
            if np.issubdtype(array.dtype, np.floating) and array.ndim:
                widths[name].add(array.shape[-1])
    # An axis that varies from sample to sample, such as that of scores, has no mean.
    energies = {name: _energy(outputs, name) for name, found in widths.items() if len(found) == 1}
    return {name: energy for name, energy in energies.items() if energy > 0.0}


def _energy(outputs: Sequence[Mapping[str, np.ndarray]], name: str) -> float:
    def parts() -> Iterator[np.ndarray]:
        for each in outputs:
            array = each[name]
            yield array.reshape(-1, array.shape[-1]).astype(np.float64)

    mean = sum(part.sum(axis=0) for part in parts()) / sum(map(len, parts()))
    spread = sum(float(np.sum(np.square(part - mean))) for part in parts())
    return spread or sum(float(np.sum(np.square(part))) for part in parts())
