"""How much a pass may change the outputs of a model."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from graphcompress.measure.verify import Difference, OutputDifference


ROUNDINGS = 4
"""Outputs of an exact pass may differ by this many roundings of the coarsest float type."""


@dataclass(frozen=True)
class Exact:
    """Outputs stay the same up to the order of floating-point additions.

    ``atol`` is in units of the largest output of the reference, so that it means the same for every model. A
    model that computes in half precision rounds by more than that: there a few roundings are allowed.
    """

    atol: float = 1e-4

    def broken_by(self, difference: Difference, epsilon: float = 0.0) -> str | None:
        """Why ``difference`` breaks this, or None; ``epsilon`` is the rounding of the coarsest float type."""
        allowed = max(self.atol, ROUNDINGS * epsilon)
        if difference.max_relative_error <= allowed:
            return None
        worst = _worst(difference.outputs, lambda output: -output.max_relative_error)
        return (
            f"largest error {difference.max_relative_error:.2e} of the output range{worst}, "
            f"promised {allowed:.0e}"
        )

    def __str__(self) -> str:
        return f"exact (largest error {self.atol:.0e} of the output range)"


@dataclass(frozen=True)
class Lossy:
    """Outputs keep at least this signal-to-quantisation-noise ratio.

    What is said of tokens diverges by at most ``max_divergence`` nats, where that is promised: a perplexity
    grows by about as large a share. It is broken by more than the chance of which tokens were seen: two
    standard errors.
    """

    min_sqnr_db: float
    max_divergence: float | None = None

    def broken_by(self, difference: Difference, epsilon: float = 0.0) -> str | None:
        """Why ``difference`` breaks this contract, or None."""
        if difference.sqnr_db < self.min_sqnr_db:
            worst = _worst(difference.outputs, lambda output: output.sqnr_db)
            return f"SQNR {difference.sqnr_db:.1f} dB{worst}, promised at least {self.min_sqnr_db:.0f} dB"
        found, sure = difference.divergence, difference.sure_divergence
        if self.max_divergence is None or found is None or sure is None or sure <= self.max_divergence:
            return None
        worst = _worst(difference.outputs, lambda output: -(output.divergence or 0.0))
        return (
            f"scores of tokens diverge by {found:.3f} nats{worst}, so that a perplexity grows by about "
            f"{math.expm1(found):.1%}, promised at most {self.max_divergence:g} nats"
        )

    def __str__(self) -> str:
        scores = "" if self.max_divergence is None else f", tokens within {self.max_divergence:g} nats"
        return f"lossy (SQNR at least {self.min_sqnr_db:.0f} dB{scores})"


def _worst(outputs: Sequence[OutputDifference], goodness: Callable[[OutputDifference], float]) -> str:
    """Which of several outputs a figure is of."""
    return f" (output {min(outputs, key=goodness).name!r})" if len(outputs) > 1 else ""


Contract = Exact | Lossy
