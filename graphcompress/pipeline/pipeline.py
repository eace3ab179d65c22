"""A pipeline: passes in order, each checked against the promise it makes."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from threadpoolctl import threadpool_limits

from graphcompress.analysis.cost import macs
from graphcompress.errors import CoverageError, UsageError, nearest
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.measure.metrics import Drop, Score, Scoring
from graphcompress.measure.verify import Difference
from graphcompress.pipeline.account import Account
from graphcompress.pipeline.contract_check import Checker, ModelSize, Outputs, judge, rounding
from graphcompress.plugin.base import Pass
from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.context import Context
from graphcompress.plugin.contract import Exact, Lossy
from graphcompress.plugin.options import build, split_calls
from graphcompress.plugin.record import Record, Skipped, Touched
from graphcompress.plugin.registry import PASSES


@dataclass(frozen=True)
class PassRecord:
    """What one pass did.

    Attributes:
        text: the pass as a user would type it.
        touched, skipped, notes, results, curves, plan: as the pass reported them.
        size: of the model after it.
        step: outputs against the model before this pass; of a pass that trains, against the model before the
            first lossy pass that awaits it.
        total: outputs against the model that came in.
        coverage: share of all float parameters that it touched.
        broken: how it broke its contract, when that was allowed.
        exact: whether it promises that the outputs stay the same.
        score: the task metric after it, where one was asked for; of an exact pass it is that before it.
        drop: how much worse that is than the metric of the model that came in.
    """

    text: str
    touched: tuple[Touched, ...]
    skipped: tuple[Skipped, ...]
    notes: tuple[str, ...]
    size: ModelSize
    step: Difference
    total: Difference
    coverage: float
    broken: str | None
    exact: bool = False
    score: Score | None = None
    drop: Drop | None = None
    results: tuple[str, ...] = ()
    curves: Mapping[str, tuple[tuple[int, float], ...]] = field(default_factory=dict)
    plan: str = ""


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
        return cls(build(PASSES.find(name), name, options) for name, options in calls)

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
        scoring: Scoring | None = None,
    ) -> list[PassRecord]:
        """Run every pass on ``model``, in place, and check structure, outputs and coverage after each.

        ``allow`` names passes whose broken contract is accepted; ``require_coverage`` (0-1) binds lossy ones.
        ``original`` are outputs of ``model`` on the batches of :func:`check_samples`, when they are known;
        with ``scoring``, which has scored ``model``, every pass that is not exact is scored, but the last,
        whose score is that of what is made of the result.

        Raises:
            ContractError: a pass changed the outputs by more than it promised, or broke the graph.
            CoverageError: a lossy pass touched a smaller share of the parameters than required.
            UsageError: ``allow`` names a pass that is not in the pipeline, or the coverage is no share.
        """
        self.check_request(allow, require_coverage)
        if self.trains and ctx.training is None:
            raise UsageError(f"{self} trains; give samples to train on with --train")
        self.check_given(calibrated=ctx.samples is not None)
        self.check_target("in use", ctx.capabilities, calibrated=ctx.samples is not None)
        self.agree(model)
        check = Checker(model, ctx, original)
        records = []
        # Passes edit the model in place; the copy shares the weights, which stay on disk.
        teacher = model.clone() if self.trains else None
        exact = [isinstance(step.contract, Exact) for step in self.passes]
        for number, step in enumerate(self.passes):
            ctx.progress(f"{step}", 0, 1)
            if not exact[number] and all(exact[:number]):  # the graph has the form that the others will see
                for later in self.passes[number:]:
                    later.check(model, ctx)
            given = dataclasses.replace(ctx, original=teacher)
            record = _run_pass(step, model, given, check, allow, awaits=self._awaits_training(number))
            if scoring is not None and not exact[number] and step is not self.passes[-1]:
                record = _scored(record, model, ctx, scoring)
            ctx.progress(f"{step}", 1, 1)
            if teacher and all(exact[: number + 1]):
                teacher = model.clone()  # the same model in a plainer form
            records.append(record)
            # Before the coverage is required: whoever looks on sees the pass that failed.
            on_record(record)
            _require(require_coverage, step, record)
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

    def agree(self, model: Model) -> None:
        """What its passes are promised of inputs and outputs holds for ``model`` from now on."""
        for step in self.passes:
            step.agree(model)

    def check_given(self, *, calibrated: bool) -> None:
        """Fail before any work when a pass lacks samples or a package that its options need.

        Raises:
            GraphCompressError: as :meth:`Pass.check_given`.
        """
        for step in self.passes:
            step.check_given(calibrated=calibrated)

    def check_target(self, name: str, capabilities: Capabilities, *, calibrated: bool) -> None:
        """Fail before any work when a pass is asked for something that the target ``name`` cannot run.

        Raises:
            UsageError: it says which option to change.
        """
        for step in self.passes:
            reason = step.unsupported(capabilities, calibrated=calibrated)
            if reason is not None:
                raise UsageError(f"the target {name} cannot run what {step} asks for: {reason}")


def first_passes(named: Iterable[Pass]) -> tuple[Pass, ...]:
    """The installed passes that go first and are not ``named``, with their default options."""
    names = {step.name for step in named}
    return tuple(kind() for kind in PASSES.usable() if kind.goes_first and kind.name not in names)


def _run_pass(
    step: Pass, model: Model, ctx: Context, check: Checker, allow: Collection[str], *, awaits: bool
) -> PassRecord:
    """Run one pass and judge it; one that ``awaits`` training is judged with the pass that trains."""
    account = Account(model)
    if awaits:
        check.await_training(step)
    # How BLAS shares its work out decides the last bits; training has libraries and threads of its own.
    with threadpool_limits(limits=None if step.trains else 1, user_api="blas"):
        done = step.run(model, ctx)
    if not isinstance(done, Record):  # a pass of another package: nothing checks its types
        raise UsageError(f"{step} returned no record; let its run() end with: return rw.record")
    accounted = isinstance(step.contract, Lossy) and step.changes_weights
    rest = account.unnamed(model, done) if accounted else ()
    change, total, bytes_on_disk = check.after(model, trained=step.trains)
    # A pass that awaits training broke nothing yet: what it lost may be learned again.
    judged = [] if awaits else [step]
    if step.trains:
        judged, check.awaiting = [*check.awaiting, step], []
    return PassRecord(
        text=str(step),
        touched=done.touched,
        skipped=(*done.skipped, *rest),
        notes=(*step.deprecated, *done.notes),
        size=ModelSize(model.parameters, bytes_on_disk, macs(model)),
        step=change,
        total=total,
        coverage=account.coverage(model, done),
        broken=judge(judged, change, allow, rounding(model), ctx.training, check.undefined),
        exact=isinstance(step.contract, Exact),
        results=done.results,
        curves=done.curves,
        plan=done.plan,
    )


def _scored(record: PassRecord, model: Model, ctx: Context, scoring: Scoring) -> PassRecord:
    """``record`` with the task metric of the model as it is now."""
    # A metric runs many rows, which pays for packing the weights.
    with Runner(model, optimize=ctx.capabilities.judged_fused, prepack=True) as runner:
        score, drop = scoring.judged(runner, f"evaluate after {record.text}")
    return dataclasses.replace(record, score=score, drop=drop)


def _require(coverage: float, step: Pass, record: PassRecord) -> None:
    if isinstance(step.contract, Lossy) and step.changes_weights and record.coverage < coverage:
        raise CoverageError(
            f"{step} touched {record.coverage:.1%} of the parameters, {coverage:.1%} are "
            f"required; it left alone: {_reasons(record.skipped)}"
        )


def _reasons(skipped: Sequence[Skipped]) -> str:
    reasons: dict[str, list[str]] = {}
    for item in skipped:
        reasons.setdefault(item.reason, []).append(item.name)
    parts = [f"{len(names)} × {reason} (such as {names[0]})" for reason, names in reasons.items()]
    return "; ".join(parts) or "nothing that it knows of"
