"""An instrument: what is added to a student while it is trained, and what becomes of the deployed graph."""

from __future__ import annotations

import abc
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

from graphcompress.plugin.base import Named

if TYPE_CHECKING:
    import torch
    from torch import fx

    from graphcompress.rewrite.rewriter import Rewriter


@dataclass(frozen=True)
class Step:
    """Where a training is.

    Attributes:
        number: optimiser steps that are done.
        steps: optimiser steps of the whole run.
        evaluated: whether the student is evaluated after this step.
    """

    number: int
    steps: int
    evaluated: bool = False


@dataclass(frozen=True)
class Rates:
    """Parameters of an instrument, and how fast they learn.

    Attributes:
        parameters: registered in the student.
        lr: their highest learning rate, which rises and falls as the run's does; None: the run's.
        factor: by which the learning rate is multiplied.
        weight_decay: of AdamW.
    """

    parameters: Sequence[torch.nn.Parameter]
    lr: float | None = None
    factor: float = 1.0
    weight_decay: float = 0.0


class Attached:
    """An instrument at work on one student; every method may be left out.

    What it learns or counts lies in parameters and buffers of the student, which are kept with the best
    evaluated state and in checkpoints, or in :meth:`state`.
    """

    def rates(self) -> Sequence[Rates]:
        """Its parameters; those of the student that it names learn as it says, no longer as the others do."""
        return ()

    def shielded(self) -> Sequence[torch.nn.Parameter]:
        """Its parameters that losses inside the graph (hidden states, scores) do not train in this step."""
        return ()

    def before_step(self, step: Step) -> None:
        """Called before every optimiser step: a schedule moves on."""

    def loss(self, step: Step) -> torch.Tensor | None:
        """A term that is added to the loss of every step, as large as it is to count; None: none, ever."""
        return None

    def summed(self) -> Sequence[torch.Tensor]:
        """Sums that the student takes while it runs on a batch: those of all processes are added."""
        return ()

    def after_step(self, step: Step) -> None:
        """Called after every optimiser step, before an evaluation: parameters go back into their limits."""

    def may_end(self, step: Step) -> bool:
        """Whether the student may stay as it is after this step: not while a schedule still cuts."""
        return True

    def shown(self) -> str:
        """A few words for the progress of the training."""
        return ""

    def state(self) -> Mapping[str, Any]:
        """Plain values and tensors that a checkpoint keeps beside the student's parameters and buffers."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Take back what :meth:`state` gave."""

    def finish(self, rw: Rewriter) -> None:
        """Edit the deployed graph ``rw.model``, which has the best weights already."""


@dataclass(frozen=True)
class Instrument(Named, abc.ABC):
    """Something that is added to a student while it is trained, and that says what becomes of the graph."""

    learns_scales: ClassVar[bool] = False
    """Whether the scales of quantisation have to be parameters of the student: they are constants without."""

    def concerns(self, student: fx.GraphModule) -> bool:
        """Whether a student that holds what it holds cannot be trained without, also where nobody asks."""
        return False

    @abc.abstractmethod
    def attach(self, student: fx.GraphModule) -> Attached:
        """Edit the graph of ``student``, register parameters in it, and go to work.

        ``student.meta["forms"]`` says how every parameter is stored in the ONNX graph, and
        ``student.meta["model"]`` is that graph's model, not to be edited before :meth:`Attached.finish`.
        """
