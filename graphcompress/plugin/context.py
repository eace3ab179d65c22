"""What a pass is given besides the model."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Protocol

from graphcompress.plugin.capabilities import Capabilities

if TYPE_CHECKING:
    from pathlib import Path

    from graphcompress.data.load import Samples
    from graphcompress.graph.model import Model
    from graphcompress.measure.cache import Measurements
    from graphcompress.measure.timing import Ratio
    from graphcompress.measure.verify import Run
    from graphcompress.plugin.task import Metric


class Progress(Protocol):
    """Reports long work; the command line draws a bar, a library call draws nothing."""

    def __call__(self, text: str, done: int, total: int, detail: str = "") -> None:
        """``done`` of ``total`` steps of the work called ``text`` are finished; ``detail`` tells more."""


def no_progress(text: str, done: int, total: int, detail: str = "") -> None:
    """The progress of a library call: silence."""


HELD_OUT_SHARE, HELD_OUT_ROWS = 0.05, 512
"""Part of the samples to train on that is held out where a user gives no others; at most so many rows."""


@dataclass(frozen=True)
class Training:
    """What a pass that trains learns from.

    Attributes:
        samples: to train on; labels, where there are any, are in their columns.
        teacher: whose answers are learned; None for the model as it came in.
        held_out: to evaluate on, and to judge contracts on; None for a part of ``samples``.
        metric: the task metric that is evaluated; None for the loss itself.
        folder: for checkpoints, from which an interrupted run goes on and which say that a run is done; None
            for none.
    """

    samples: Samples
    teacher: Model | None = None
    held_out: Samples | None = None
    metric: Metric | None = None
    folder: Path | None = None

    def divided(self) -> tuple[Samples, Samples]:
        """Samples to train on, and samples to evaluate and to judge the result on."""
        if self.held_out is not None:
            return self.samples, self.held_out
        return self.samples.held_out(HELD_OUT_SHARE, HELD_OUT_ROWS)


@dataclass(frozen=True)
class Context:
    """What a pass is given besides the model: samples, capabilities of the target, a seed.

    Attributes:
        samples: calibration samples of the user, or None: a pass works without and says what it would gain.
        capabilities: of the target that the result is for.
        seed: for everything random.
        progress: called on long work.
        training: what a pass that trains learns from, or None.
        original: the model as it came in, kept (its weights on disk) where a later pass trains, else None.
        pinned: target or pass as the user would type it → the record of an earlier lowering, or the plan of
            an earlier run, that is to be made again.
        spent: share of the drop allowed to the task metric that a model takes which runs like this; above 1
            is too much; None where no drop is bounded. Of written texts it is what the model itself writes.
        measurements: times kept from earlier, which are asked before anything is measured; None: those that
            this machine keeps.
        drop: how much worse the task metric of a model is that runs like this; None without a metric.
        speed: how many times as fast as the file that came in the artifact of a model is, at each of some
            shapes such as ``8x128``, measured here; None where there is no file, or it runs elsewhere.
        on_trial: what is lowered is measured and thrown away, so that a target does not refuse it for being
            slow: a pass asks where to begin.
    """

    samples: Samples | None = None
    capabilities: Capabilities = field(default_factory=Capabilities)
    seed: int = 0
    progress: Progress = no_progress
    training: Training | None = None
    original: Model | None = None
    pinned: Mapping[str, str] = field(default_factory=dict)
    spent: Callable[[Model, Run], float] | None = None
    drop: Callable[[Run], float] | None = None
    speed: Callable[[Model, Sequence[str]], list[Ratio]] | None = None
    measurements: Measurements | None = None
    on_trial: bool = False
