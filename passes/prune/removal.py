"""What goes of one block, how many units may, and in which order."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np

from graphcompress.coupling.couplings import FFN, HEAD
from graphcompress.numerics.least_squares import LinearMap
from graphcompress.passes.prune.blocks import Block

KINDS = {FFN: "FFN nodes", HEAD: "heads"}


@dataclass(frozen=True, eq=False)
class Ranking:
    """Units in the order in which they would go.

    Attributes:
        order: [at most size] units.
        costs: what each costs, as a share of the energy that the whole block gives; blocks can be compared.
        peaks: of ``xmax``: the largest activations of all units that could go, ascending, in standard
            deviations; those of ``order`` come first.
    """

    order: np.ndarray
    costs: np.ndarray
    peaks: np.ndarray | None = None

    def error(self, count: int) -> float:
        """Error of the block once the first ``count`` units went, where costs are those of ``obs``."""
        return float(np.sqrt(np.sum(self.costs[:count])))


@dataclass(eq=False)
class Removal:
    """What happens to one block.

    Attributes:
        block: the block.
        removed: units that go.
        fit: the reader's remaining rows and its bias, refitted; None leaves both as they are.
        error: root mean square error of the block's output on held-out tokens, as a share of its standard
            deviation.
        figures: what removing a quarter or half of the units would cost, and what would let some go.
        reason: why nothing goes.
        peaks: the peaks of the ranking.
    """

    block: Block
    removed: np.ndarray
    fit: LinearMap | None = None
    error: float | None = None
    figures: dict[str, float] = field(default_factory=dict)
    reason: str = ""
    peaks: np.ndarray | None = None

    @property
    def keep(self) -> np.ndarray:
        """[units] mask of what stays."""
        keep = np.ones(self.block.size, bool)
        keep[self.removed] = False
        return keep

    @property
    def rows(self) -> np.ndarray:
        """Input features of the reader that stay."""
        return self.block.kept_rows(self.keep)


def removable(size: int, ratio: float, round_to: int = 1) -> int:
    """How many of ``size`` units may go: at most the ratio; one stays, and what stays divides by it."""
    # 0.3 · 10 is 2.9999… in floating point; the small addend keeps floor from losing a unit to that.
    kept = max(1, size - int(np.floor(size * ratio + 1e-9)))
    # Rounding what stays upwards may ask for more units than there are; nothing goes then.
    return max(0, size - -(-kept // round_to) * round_to)


def above(value: float) -> float:
    """The next number of three decimals above ``value``: as an option it includes it."""
    return float(np.floor(value * 1000) + 1) / 1000
