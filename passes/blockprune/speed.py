"""What heads and FFN nodes cost in time on this machine, measured before they are chosen."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np

from graphcompress.coupling.couplings import FFN, HEAD, couplings
from graphcompress.coupling.ends import is_zeroing
from graphcompress.graph.model import Model
from graphcompress.latency.table import latency_table
from graphcompress.measure.cache import Measurements
from graphcompress.plugin.context import Context

LEFT = 0.25
"""Time is taken for a line from this share of the units of a block to all: where trained masks end."""


@dataclass(frozen=True)
class Costs:
    """Time of a model, as shares of it: ``rest`` + ``attention`` · heads left + ``ffn`` · FFN nodes left."""

    attention: float
    ffn: float

    @property
    def rest(self) -> float:
        """What no mask makes faster."""
        return max(0.0, 1 - self.attention - self.ffn)

    def density(self, speedup: float) -> float:
        """Share of the time of heads and FFN nodes that may stay for a model so many times as fast."""
        return (1 / speedup - self.rest) / max(self.attention + self.ffn, float(np.finfo(np.float64).tiny))


def costs(
    model: Model, ctx: Context, shape: str, masked: Collection[str], measurements: Measurements
) -> Costs:
    """What the units of a model cost by their kind; of blocks with a weight among ``masked``.

    The rest stays, whatever it costs.
    """
    groups = [
        group
        for group in couplings(model)
        if group.kind in (HEAD, FFN)
        and any(each.weight.name in masked for each in (*group.producers, *group.consumers))
        and is_zeroing(group)
    ]
    table = latency_table(model, groups, [shape], ctx, measurements)
    saved = dict.fromkeys((HEAD, FFN), 0.0)
    for group in groups:
        fewest = max(1, round(LEFT * group.size))
        difference = table.share(group, group.size) - table.share(group, fewest)
        saved[group.kind] += difference * group.size / max(1, group.size - fewest)
    return Costs(saved[HEAD], saved[FFN])
