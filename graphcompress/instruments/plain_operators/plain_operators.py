"""plain-operators: normalisations become an affine map, and GELU becomes ReLU, little by little."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graphcompress.errors import UsageError
from graphcompress.plugin.instrument import Attached, Instrument
from graphcompress.plugin.options import option

if TYPE_CHECKING:
    from torch import fx


@dataclass(frozen=True)
class PlainOperators(Instrument):
    """Put an affine map in the place of LayerNormalization, and ReLU in that of GELU (arXiv:2109.04838).

    The student computes a mean of both, in which the plain operator counts for more with every step; from
    ``until`` on it is alone. A normalisation then subtracts one number, a running mean, and divides by one,
    the root of a running variance, for all tokens alike (NoNorm); both stand still once it is alone.
    """

    name: ClassVar[str] = "plain-operators"
    norms: bool = option(True, "LayerNormalization becomes an affine map")
    activations: bool = option(True, "GELU becomes ReLU")
    until: float = option(0.6, "share of the steps after which they are alone", minimum=0.0, maximum=1.0)

    def __post_init__(self) -> None:
        super().__post_init__()
        if not self.norms and not self.activations:
            raise UsageError(f"{self} changes nothing; leave it out")

    def attach(self, student: fx.GraphModule) -> Attached:
        """Both operators stand side by side in the graph."""
        from graphcompress.instruments.plain_operators.interpolated import Interpolated

        return Interpolated(self, student)
