"""Judges passes: outputs before and after each of them on a few samples, held against its contract."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphcompress.data.load import Samples
from graphcompress.data.made_up import varied_samples
from graphcompress.data.teacher_forced import unrolled
from graphcompress.errors import ContractError
from graphcompress.files.runtime import Feed
from graphcompress.files.scratch import on_disk
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.memory import bounded
from graphcompress.measure.reference import check_repeats
from graphcompress.measure.structure import check_structure, interface
from graphcompress.measure.tokens import token_values
from graphcompress.measure.verify import Difference, compare
from graphcompress.plugin.base import Pass
from graphcompress.plugin.context import Context, Training

CHECK_SAMPLES = 16
"""The outputs before and after a pass are compared on this many samples."""

CHECK_BATCH = 8
"""The samples of a check run in batches of this many."""

TRAINED_CHECK_SAMPLES = 64
"""Where a pass trains, this many samples are compared: what is learned differs from one to the next."""

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class ModelSize:
    """Size of a model: parameters, bytes on disk, multiply-accumulates for one sample of 128 tokens."""

    parameters: int
    bytes_on_disk: int
    macs: int


def check_samples(model: Model, ctx: Context) -> Samples:
    """The samples on which outputs are compared: the first of the user's, or made-up ones.

    Where a pass trains, they are such as it does not train on.
    """
    if ctx.training is not None:
        kept = ctx.training.divided()[1].spread(TRAINED_CHECK_SAMPLES)
        return bounded(unrolled(model, kept), model)
    if ctx.samples:
        return bounded(ctx.samples.first(CHECK_SAMPLES), model)
    return varied_samples(model, seed=ctx.seed)


class Checker:
    """Outputs of the model before and after each pass, on a few samples."""

    def __init__(self, model: Model, ctx: Context, original: Sequence[Outputs] | None) -> None:
        self.samples = check_samples(model, ctx)
        self.feeds = on_disk(self.samples.batches(CHECK_BATCH))
        self.interface = interface(model)
        self._by_token = token_values(model)
        # Else saturation of this machine's int8 products would be taken for what the pass did.
        self._fused = ctx.capabilities.judged_fused
        self.original = original if original is not None else _outputs_of(model, self.feeds)
        self.before = self.original
        self.awaiting: list[Pass] = []
        """Lossy passes that are judged together with the pass that trains."""
        self._before_awaiting = self.before

    def await_training(self, step: Pass) -> None:
        """Judge ``step`` later; call it before the pass has run."""
        # Several passes may await one that trains, which has to bring back what all of them lost.
        if not self.awaiting:
            self._before_awaiting = self.before
        self.awaiting.append(step)

    def after(self, model: Model, *, trained: bool = False) -> tuple[Difference, Difference, int]:
        """Difference to the outputs before the pass, to the original's, and the bytes on disk.

        A pass that ``trained`` is compared with the model before the first of those that await it.
        """
        check_structure(model, self.interface)
        with Runner(model, optimize=self._fused) as runner:
            now = on_disk(map(runner, self.feeds))
            bytes_on_disk = runner.bytes_on_disk
        before = self._before_awaiting if trained and self.awaiting else self.before
        step, total = self._compare(before, now), self._compare(self.original, now)
        self.before = now
        return step, total, bytes_on_disk

    def undefined(self) -> str | None:
        """Name of an output in which the model that came in returns NaN on the samples, if there is one."""
        outputs = ((name, array) for found in self.original for name, array in found.items())
        return next(
            (name for name, array in outputs if array.dtype.kind == "f" and np.isnan(array).any()), None
        )

    def _compare(self, before: Sequence[Outputs], now: Sequence[Outputs]) -> Difference:
        recorded = iter(now)
        return compare(before, lambda feed: next(recorded), self.feeds, self._by_token, samples=self.samples)


def _outputs_of(model: Model, feeds: Sequence[Feed]) -> list[Feed]:
    with Runner(model) as runner:
        outputs = on_disk(map(runner, feeds))
        check_repeats(model, runner, feeds[0], outputs[0])
    return outputs


def judge(
    judged: Sequence[Pass],
    change: Difference,
    allow: Collection[str],
    epsilon: float,
    training: Training | None,
    undefined: Callable[[], str | None],
) -> str | None:
    """How contracts were broken where that is allowed; the last of ``judged`` is the pass that ran.

    ``undefined`` names an output of the model that came in which is NaN, if there is one.

    Raises:
        ContractError: contracts are broken and not allowed to be; all are named.
    """
    broken = [(item, item.contract.broken_by(change, epsilon)) for item in judged]
    reasons = [(item, reason) for item, reason in broken if reason is not None]
    refused = [(item, reason) for item, reason in reasons if item.name not in allow]
    if not refused:
        return "; ".join(reason for _, reason in reasons) or None
    last = judged[-1]
    after = "" if all(item is last for item, _ in refused) else f", after {last}"
    text = "; ".join(f"{item} broke its contract: {reason}" for item, reason in refused)
    options = " ".join(dict.fromkeys(f"--allow {item.name}" for item, _ in refused))
    advice = f"Ask for less, or accept it with {options}"
    if last.trains and training is not None:
        advice = f"Ask for less, train longer, or accept it with {options}"
        advice += (
            f" (what was learned is in {training.folder}, and is not learned again)"
            if training.folder
            else ""
        )
    nowhere = undefined()
    if nowhere is not None:
        advice = (
            f"The model that came in returns NaN in {nowhere!r} there itself, with which nothing can be "
            f"compared; look for what divides by zero or subtracts infinities, or accept it with {options}"
        )
    raise ContractError(f"{text}, on {change.samples_text}{after}. {advice}")


def rounding(model: Model) -> float:
    """The relative rounding of the coarsest float type that the main graph computes in; 0 without floats."""
    kinds = {value.dtype for node in model.graph for value in node.outputs if value.dtype is not None}
    return max((_EPSILONS.get(kind.name, 0.0) for kind in kinds), default=0.0)


_EPSILONS = {"BFLOAT16": 2.0**-7, "FLOAT16": 2.0**-10, "FLOAT": 2.0**-23, "DOUBLE": 2.0**-52}
