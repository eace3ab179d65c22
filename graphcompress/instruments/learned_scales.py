"""learned-scales: the scales of a quantisation are trained with the weights."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from graphcompress.plugin.instrument import Attached, Instrument, Rates, Step

if TYPE_CHECKING:
    import torch
    from torch import fx

SMALLEST = 0.01
"""A scale never falls below this share of its mean before the training, so that it never reaches zero."""


@dataclass(frozen=True)
class LearnedScales(Instrument):
    """Train the scales of quantisation, too.

    AdamW moves a number by about the learning rate, however small it is; a scale moves by that share of
    itself.
    """

    name: ClassVar[str] = "learned-scales"
    learns_scales: ClassVar[bool] = True

    def attach(self, student: fx.GraphModule) -> Attached:
        """The scales are parameters of the student already."""
        return _Scales([student.get_parameter(path) for path in student.meta["scales"]])


class _Scales(Attached):
    def __init__(self, scales: Sequence[torch.nn.Parameter]) -> None:
        self._sizes = [(scale, float(scale.detach().abs().mean())) for scale in scales]

    def rates(self) -> list[Rates]:
        return [Rates([scale], factor=size) for scale, size in self._sizes]

    def after_step(self, step: Step) -> None:
        for scale, size in self._sizes:
            if scale.requires_grad:
                scale.data.clamp_(min=SMALLEST * size)
