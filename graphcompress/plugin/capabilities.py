"""What a target can run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from graphcompress.plugin.schemes import (
    INT8,
    INT8_CACHE,
    UINT8,
    Scheme,
    common_schemes,
    described,
    integer_products,
)


@dataclass(frozen=True)
class Capabilities:
    """What a target can run; passes read it, so that they write nothing that the target refuses.

    Attributes:
        schemes: of quantisation, the better ones first.
        constant_expressions: weights may be expressions over what is stored; the target folds or lowers them.
    """

    schemes: tuple[Scheme, ...] = (*integer_products(UINT8, INT8, dynamic=True), INT8_CACHE)
    constant_expressions: bool = True

    @property
    def judged_fused(self) -> bool:
        """Whether fused int8 products of any machine answer like the target's.

        Where all 8 bits of weights are in use those of x86 without VNNI saturate; such models are judged with
        nothing fused, so that the products are computed in float.
        """
        return not any(scheme.weights is not None and scheme.weights.bits == 8 for scheme in self.schemes)

    def __str__(self) -> str:
        weights = "stored or expressions" if self.constant_expressions else "stored as they are"
        return f"{described(self.schemes) or 'floats alone'}; weights {weights}"

    def choose(self, wanted: Sequence[Scheme]) -> Scheme | None:
        """Of the schemes ``wanted`` the one that the target runs best, or None where it runs none of them."""
        return next((each for runs in self.schemes for each in wanted if runs.includes(each)), None)

    def common(self, other: Capabilities) -> Capabilities:
        """What both targets can run."""
        return Capabilities(
            common_schemes(self.schemes, other.schemes),
            constant_expressions=self.constant_expressions and other.constant_expressions,
        )
