"""pair-limits: int8 weights for processors whose products saturate stay safe while they are trained."""

from __future__ import annotations

from dataclasses import dataclass
from operator import attrgetter
from typing import TYPE_CHECKING, ClassVar

from graphcompress.plugin.instrument import Attached, Instrument, Step
from graphcompress.plugin.options import option

if TYPE_CHECKING:
    from torch import fx


@dataclass(frozen=True)
class PairLimits(Instrument):
    """Keep neighbouring int8 weights within the sum that x86 without VNNI adds without saturating.

    It goes to work by itself where the weights of a graph keep to that limit before the training.
    """

    name: ClassVar[str] = "pair-limits"
    every: int = option(8, "steps after which weights are moved back; always before an evaluation", minimum=1)

    def concerns(self, student: fx.GraphModule) -> bool:
        """Whether there are weights that keep to the limit."""
        return any(form.pairs is not None for form in student.meta["forms"].values())

    def attach(self, student: fx.GraphModule) -> Attached:
        """Nothing is added to the graph."""
        return _Limits(student, self.every)


class _Limits(Attached):
    def __init__(self, student: fx.GraphModule, every: int) -> None:
        self._student = student
        self._every = every

    def after_step(self, step: Step) -> None:
        if step.evaluated or step.number % self._every == 0:
            limit_pairs(self._student)


def limit_pairs(module: fx.GraphModule) -> None:
    """Move parameters whose rounded neighbours exceed their limit to the nearest values that do not."""
    import torch

    from graphcompress.fx.stored import limited

    for path, form in module.meta["forms"].items():
        if form.pairs is not None:
            weight, scale = module.get_parameter(path), attrgetter(form.scale)(module)
            with torch.no_grad():
                weight.copy_(limited(weight, scale, form))
