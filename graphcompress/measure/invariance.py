"""Does an answer depend on what else is in its batch?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from graphcompress.data.load import Samples
from graphcompress.measure.verify import Run
from graphcompress.numerics.metrics import NEVER, entry_errors, row_blocks, smallest_cosine


@dataclass(frozen=True)
class Invariance:
    """Whether an answer depends on what else is in the batch.

    Attributes:
        samples: number of samples run both alone and in a padded batch.
        max_relative_error: largest difference over the largest absolute value of the output.
        min_cosine: smallest cosine between an answer alone and in the batch.
        changed: samples whose answer moved by more than ``tolerance`` of the output range.
        tolerance: share of the output range.
        made_up: the samples were made up, not a user's.
    """

    samples: int
    max_relative_error: float
    min_cosine: float
    changed: int
    tolerance: float
    made_up: bool = False


def batch_invariance(run: Run, samples: Samples, *, batch: int = 8, tolerance: float = 0.01) -> Invariance:
    """Run every sample alone and in a padded batch of ``batch``, and compare the two answers.

    Outputs that have no entry per sample are not looked at; with no other, no sample was compared.
    """
    batch, peak = samples.batch_size(batch), 0.0
    distances: list[tuple[float, float]] = []
    for indices in samples.indices(batch):
        together = run(samples.batch(indices))
        rows = samples.filled(1), samples.filled(len(indices))
        for row, index in enumerate(indices):
            alone = run(samples.batch([index]))
            peak = max([peak, *map(_peak, alone.values())])
            distance = _answer_distance(alone, together, row, rows, samples.fronts(index, indices))
            distances += [] if distance is None else [distance]
    errors = [error / (peak or 1.0) for error, _ in distances]
    worst, low = max(errors, default=0.0), min((angle for _, angle in distances), default=1.0)
    changed = sum(error > tolerance for error in errors)
    return Invariance(len(distances), worst, min(1.0, low), changed, tolerance, samples.synthetic)


def _answer_distance(
    alone: Mapping[str, np.ndarray],
    together: Mapping[str, np.ndarray],
    row: int,
    rows: tuple[int, int],
    fronts: Mapping[str, int],
) -> tuple[float, float] | None:
    """Largest error and smallest cosine of row ``row`` of a batch; ``rows`` are those of both batches.

    None where no output has an entry per row. ``fronts`` says how many padded tokens a cache begins with.
    """
    error, angle, found = 0.0, 1.0, False
    for name, array in alone.items():
        axis = _batch_axis(array.shape, together[name].shape, rows)
        if axis is None or not np.issubdtype(array.dtype, np.floating):
            continue
        found = True
        a, b = array.take(0, axis), together[name].take(row, axis)
        if name in fronts:
            b = b[..., fronts[name] :, :]
        b = b[tuple(slice(size) for size in a.shape)]
        for one, other in row_blocks(a, b):
            error = max(error, float(np.max(entry_errors(one, other), initial=0.0)))
            angle = min(angle, smallest_cosine(one, other)) if a.ndim else angle
    return (error, angle) if found else None


def _batch_axis(alone: tuple[int, ...], together: tuple[int, ...], rows: tuple[int, int]) -> int | None:
    """The first axis with an entry per row in both; None where there is none, or other axes do not fit."""
    if len(alone) != len(together):
        return None
    axis = next((axis for axis, sizes in enumerate(zip(alone, together, strict=True)) if sizes == rows), None)
    fits = all(b >= a for number, (a, b) in enumerate(zip(alone, together, strict=True)) if number != axis)
    return axis if fits else None


def _peak(array: np.ndarray) -> float:
    """Largest finite absolute value of a floating-point output, stand-ins aside; 0 for others."""
    if not np.issubdtype(array.dtype, np.floating):
        return 0.0
    return float(np.max(np.abs(np.where(np.isfinite(array) & (array > NEVER), array, 0.0)), initial=0.0))
