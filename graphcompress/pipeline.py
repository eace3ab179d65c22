"""A pipeline: passes in order, each checked against the promise it makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from graphcompress import registry
from graphcompress.analysis.cost import macs
from graphcompress.analysis.linears import embeddings, linears
from graphcompress.base import (
    Capabilities,
    Context,
    Exact,
    Lossy,
    Pass,
    Skipped,
    Touched,
    Training,
    parameters_of,
)
from graphcompress.data.load import Samples, synthetic_samples
from graphcompress.errors import ContractError, CoverageError, UsageError, nearest
from graphcompress.model import Model
from graphcompress.options import build, split_calls
from graphcompress.runtime import Feed, Runner
from graphcompress.verify import Difference, check_structure, compare, interface

CHECK_SAMPLES = 16
CHECK_BATCH = 8
TRAINED_CHECK_SAMPLES = 64
"""More where a pass trains: what was learned differs from sample to sample."""

Outputs = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Size:
    """Size of a model: parameters, bytes on disk, multiply-accumulates for one sample of 128 tokens."""

    parameters: int
    bytes_on_disk: int
    macs: int


@dataclass(frozen=True)
class PassRecord:
    """What one pass did.

    Attributes:
        text: the pass as a user would type it.
        touched, skipped, notes: as the pass reported them.
        size: of the model after it.
        step: outputs against the model before this pass; of a pass that trains, against the model before the
            first lossy pass that awaits it.
        total: outputs against the model that came in.
        coverage: share of the parameters of linears and embeddings that it touched.
        broken: how it broke its contract, when that was allowed.
    """

    text: str
    touched: tuple[Touched, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    size: Size
    step: Difference
    total: Difference
    coverage: float
    broken: str | None


class Pipeline:
    """Passes in the order in which they run; ``Pipeline.parse(str(p)) == p``."""

    def __init__(self, passes: Iterable[Pass]) -> None:
        self.passes = tuple(passes)

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Read ``kron{rank=2},prune,int8``.

        Raises:
            UsageError: a syntax error, an unknown pass or option, or an option out of range.
        """
        calls = split_calls(text)
        if not calls:
            raise UsageError("no passes are given; name at least one, for example --passes simplify,int8")
        return cls(build(registry.pass_class(name), name, options) for name, options in calls)

    def __str__(self) -> str:
        return ",".join(str(step) for step in self.passes)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Pipeline) and self.passes == other.passes

    def __hash__(self) -> int:
        return hash(self.passes)

    def run(
        self,
        model: Model,
        ctx: Context,
        *,
        allow: Collection[str] = (),
        require_coverage: float = 0.0,
        on_record: Callable[[PassRecord], None] = lambda record: None,
        original: Sequence[Outputs] | None = None,
    ) -> list[PassRecord]:
        """Run every pass on ``model``, in place, and check structure, outputs and coverage after each.

        ``allow`` names passes whose broken contract is accepted; ``require_coverage`` (0-1) binds lossy ones.
        ``original`` are outputs of ``model`` on the batches of :func:`check_samples`, when they are known.

        Raises:
            ContractError: a pass changed the outputs by more than it promised, or broke the graph.
            CoverageError: a lossy pass touched a smaller share of the parameters than required.
            UsageError: ``allow`` names a pass that is not in the pipeline, or the coverage is no share.
        """
        self.check_request(allow, require_coverage)
        if self.trains and ctx.training is None:
            raise UsageError(f"{self} trains; give samples to train on with --train")
        self.check_target("in use", ctx.capabilities, calibrated=ctx.samples is not None)
        check = _Checker(model, ctx, original)
        records = []
        teacher = model.clone() if self.trains else None
        checked = False
        for number, step in enumerate(self.passes):
            ctx.progress(f"{step}", number, len(self.passes))
            if not checked and not isinstance(step.contract, Exact):
                checked = True
                for later in self.passes[number:]:
                    later.check(model, ctx)
            record = _run_pass(
                step,
                model,
                dataclasses.replace(ctx, original=teacher),
                check,
                allow,
                awaits=self._awaits_training(number),
            )
            if teacher and all(isinstance(done.contract, Exact) for done in self.passes[: number + 1]):
                teacher = model.clone()  # the same model in a plainer form
            records.append(record)
            on_record(record)
            if isinstance(step.contract, Lossy) and record.coverage < require_coverage:
                raise CoverageError(
                    f"{step} touched {record.coverage:.1%} of the parameters, {require_coverage:.1%} are "
                    f"required; it left alone: {_reasons(record.skipped)}"
                )
        ctx.progress("passes", len(self.passes), len(self.passes))
        return records

    @property
    def trains(self) -> bool:
        """Whether one of its passes trains."""
        return any(step.trains for step in self.passes)

    def _awaits_training(self, number: int) -> bool:
        """Whether a pass is judged after one that trains, because it is lossy and such a pass follows."""
        step = self.passes[number]
        trained = any(later.trains for later in self.passes[number + 1 :])
        return trained and isinstance(step.contract, Lossy) and not step.trains

    def check_request(self, allow: Collection[str], require_coverage: float) -> None:
        """Fail before any work when :meth:`run` would refuse these options.

        Raises:
            UsageError: ``allow`` names a pass that is not in the pipeline, or the coverage is no share.
        """
        if not 0.0 <= require_coverage <= 1.0:
            raise UsageError(f"the coverage {require_coverage} is no share; give a number between 0 and 1")
        known = {step.name for step in self.passes}
        for name in allow:
            if name not in known:
                raise UsageError(
                    f"--allow {name}: the pipeline {self} has no such pass; {nearest(name, known)}"
                )

    def check_target(self, name: str, capabilities: Capabilities, *, calibrated: bool) -> None:
        """Fail before any work when a pass is asked for something that the target ``name`` cannot run.

        Raises:
            UsageError: it says which option to change.
        """
        for step in self.passes:
            reason = step.unsupported(capabilities, calibrated=calibrated)
            if reason is not None:
                raise UsageError(f"the target {name} cannot run what {step} asks for: {reason}")


def check_samples(model: Model, ctx: Context) -> Samples:
    """The samples on which outputs are compared: the first of the user's, or made-up ones.

    Where a pass trains, they are such as it does not train on.
    """
    if ctx.training is not None:
        return ctx.training.divided()[1].spread(TRAINED_CHECK_SAMPLES)
    return ctx.samples.first(CHECK_SAMPLES) if ctx.samples else synthetic_samples(model, seed=ctx.seed)


class _Checker:
    """Outputs of the model before and after each pass, on a few samples."""

    def __init__(self, model: Model, ctx: Context, original: Sequence[Outputs] | None) -> None:
        self.feeds = list(check_samples(model, ctx).batches(CHECK_BATCH))
        self.interface = interface(model)
        self.original = original if original is not None else _outputs(model, self.feeds)
        self.before = self.original
        self.awaiting: list[Pass] = []
        """Lossy passes that are judged together with the pass that trains."""
        self._before_awaiting = self.before

    def await_training(self, step: Pass) -> None:
        """Judge ``step`` later; call it before the pass has run."""
        if not self.awaiting:
            self._before_awaiting = self.before
        self.awaiting.append(step)

    def after(self, model: Model, *, trained: bool = False) -> tuple[Difference, Difference, int]:
        """Difference to the outputs before the pass, to the original's, and the bytes on disk.

        A pass that ``trained`` is compared with the model before the first of those that await it.
        """
        check_structure(model, self.interface)
        with Runner(model) as runner:
            now = [runner(feed) for feed in self.feeds]
            bytes_on_disk = runner.bytes_on_disk
        recorded = iter(now)
        before = self._before_awaiting if trained and self.awaiting else self.before
        step = compare(before, lambda feed: next(recorded), self.feeds)
        recorded = iter(now)
        total = compare(self.original, lambda feed: next(recorded), self.feeds)
        self.before = now
        return step, total, bytes_on_disk


def _outputs(model: Model, feeds: Iterable[Feed]) -> list[Outputs]:
    with Runner(model) as runner:
        return [runner(feed) for feed in feeds]


def _run_pass(
    step: Pass, model: Model, ctx: Context, check: _Checker, allow: Collection[str], *, awaits: bool
) -> PassRecord:
    """Run one pass and judge it; one that ``awaits`` training is judged with the pass that trains."""
    weights = weight_parameters(model)
    fresh = dataclasses.replace(ctx, touched=[], skipped=[], notes=[])
    if awaits:
        check.await_training(step)
    step.run(model, fresh)
    change, total, bytes_on_disk = check.after(model, trained=step.trains)
    judged = [] if awaits else [step]
    if step.trains:
        judged, check.awaiting = [*check.awaiting, step], []
    return PassRecord(
        text=str(step),
        touched=tuple(fresh.touched),
        skipped=tuple(fresh.skipped),
        notes=tuple(fresh.notes),
        size=Size(model.parameters, bytes_on_disk, macs(model)),
        step=change,
        total=total,
        coverage=min(1.0, parameters_of(fresh.touched) / weights) if weights else 0.0,
        broken=_judge(judged, change, allow, rounding(model), ctx.training),
    )


def _judge(
    judged: Sequence[Pass],
    change: Difference,
    allow: Collection[str],
    epsilon: float,
    training: Training | None,
) -> str | None:
    """How contracts were broken where that is allowed; the last of ``judged`` is the pass that ran.

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
    raise ContractError(f"{text}, on {change.samples} samples{after}. {advice}")


def weight_parameters(model: Model) -> int:
    """Stored parameters of all linears and embeddings."""
    return sum(item.parameters for item in linears(model)) + sum(
        item.parameters for item in embeddings(model)
    )


def rounding(model: Model) -> float:
    """The relative rounding of the coarsest float type that the main graph computes in; 0 without floats."""
    kinds = {value.dtype for node in model.graph for value in node.outputs if value.dtype is not None}
    return max((_EPSILONS.get(kind.name, 0.0) for kind in kinds), default=0.0)


_EPSILONS = {"BFLOAT16": 2.0**-7, "FLOAT16": 2.0**-10, "FLOAT": 2.0**-23, "DOUBLE": 2.0**-52}


def _reasons(skipped: Sequence[Skipped]) -> str:
    reasons: dict[str, list[str]] = {}
    for item in skipped:
        reasons.setdefault(item.reason, []).append(item.name)
    parts = [f"{len(names)} × {reason} (such as {names[0]})" for reason, names in reasons.items()]
    return "; ".join(parts) or "nothing that it knows of"
