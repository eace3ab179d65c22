"""One build: open what is asked for, measure the baseline, run the passes, lower, write."""

from __future__ import annotations

import functools
import inspect
import logging
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any, ParamSpec, Protocol, overload

from threadpoolctl import threadpool_limits

from graphcompress.analysis.cost import macs
from graphcompress.artifact.configuration import write_configuration
from graphcompress.artifact.folder import (
    PAGE,
    REPORT,
    disk_errors,
    file_hashes,
    staged,
    write_errors,
    write_manifest,
    write_times,
)
from graphcompress.artifact.sequences import artifact_run, fitted_run, lower_parts
from graphcompress.build.baseline import Baseline
from graphcompress.build.goal_checks import judged
from graphcompress.build.inputs import folder_bytes, input_hashes
from graphcompress.build.manifest import manifest, pinned, plans, times_json
from graphcompress.build.measuring import MEASURING, StepTimer, measured, timing_samples
from graphcompress.build.recipe import RECIPE, check_inputs, recipe_text
from graphcompress.build.report_file import html
from graphcompress.build.request import Request, explained
from graphcompress.build.result import Artifact, Build
from graphcompress.build.trials import with_metric, with_speed
from graphcompress.build.unsupported import refuse_unsupported
from graphcompress.build.writing import (
    artifact_generator,
    own_cache_of,
    prompts,
    source_generator,
    timed_writers,
)
from graphcompress.capturing.loading import is_checkpoint
from graphcompress.capturing.source import is_hub_name, open_model
from graphcompress.data.agreed_lengths import check_lengths
from graphcompress.data.inputs import shapes_in
from graphcompress.data.load import Samples, load_samples
from graphcompress.data.teacher_forced import unrolled
from graphcompress.data.tokenizer_files import copy_tokenizer, write_longest
from graphcompress.data.vocabulary import write_without
from graphcompress.errors import DataError
from graphcompress.generation.generator import Generator
from graphcompress.graph.agreements import agreed_length
from graphcompress.graph.model import Model
from graphcompress.measure import metrics
from graphcompress.measure.invariance import batch_invariance
from graphcompress.measure.measured import Measured, StepTimes
from graphcompress.measure.memory import bounded, longest_needs
from graphcompress.measure.metrics import Scoring
from graphcompress.measure.verify import compare
from graphcompress.pipeline.contract_check import ModelSize
from graphcompress.pipeline.pipeline import PassRecord
from graphcompress.plugin.base import Target
from graphcompress.plugin.context import Context, Training
from graphcompress.plugin.targeting import artifact_folders, common_capabilities
from graphcompress.plugin.task import Metric
from graphcompress.reporting import text as report
from graphcompress.training.checkpoint_folder import refuse_other_files, remove_checkpoints
from graphcompress.training.processes import rank

CALIBRATION_ROWS = 512
"""So many rows of the samples to train on serve for calibration where there are no others."""

_LOG = logging.getLogger(__name__)

P = ParamSpec("P")


class _Optimize(Protocol[P]):
    """A function of a request, or of its fields."""

    @overload
    def __call__(self, request: Request, /) -> Build: ...
    @overload
    def __call__(self, *given: P.args, **named: P.kwargs) -> Build: ...


def _of_fields(request: Callable[P, Request]) -> Callable[[Callable[[Request], Build]], _Optimize[P]]:
    """Let a function of a request be called with the fields of one; its signature and its help show them."""

    def decorate(build: Callable[[Request], Build]) -> _Optimize[P]:
        @functools.wraps(build)
        def called(*given: Any, **named: Any) -> Build:  # noqa: ANN401 - as Request
            whole = len(given) == 1 and not named and isinstance(given[0], Request)
            return build(given[0] if whole else request(*given, **named))

        texts = "".join(f"\n    {field.name}: {explained(field)}" for field in fields(Request))
        called.__doc__ = f"{inspect.getdoc(build)}\n\nArgs:{texts}"
        shown = inspect.signature(request).replace(return_annotation="Build")
        setattr(called, "__signature__", shown)  # noqa: B010 - no attribute that types know of
        return called

    return decorate


@_of_fields(Request)
def optimize(request: Request) -> Build:
    """Compress a model with passes, lower it for a target, verify and write the artifact.

    It takes a :class:`Request`, or the fields of one. For several targets (``"cpu,mobile"``) the model is
    compressed once, to what all of them can run, and lowered for each. The checkpoints of a pass that trains
    lie in ``<output>.training`` until the build is done, and an interrupted build goes on from there.

    Raises:
        GraphCompressError: one of its kinds for every way in which this can fail; nothing is written then.
    """
    request.check()
    with _stage(request) as stage:
        checkpoints = _checkpoints(request)
        # Before anything is read: a recipe is about these very files.
        check_inputs(request.sha256)
        with disk_errors():
            opened = _open(request)
            # Of a model of several files there is no file to run as it is.
            file = None if opened.model.joined or isinstance(request.model, Model) else opened.model.path
            baseline = Baseline(opened.model, opened.ctx, opened.scoring, file, opened.generator)
            opened = replace(opened, ctx=with_speed(opened.ctx, request, baseline))
            build = _run(request, opened, baseline)
        if stage is None:
            return build
        with write_errors(request.folder):
            lowered = _lower(request, opened, baseline, stage)
            *others, last = build.records
            # The pipeline scores all passes but the last: what that one made is scored as the artifact.
            last = replace(last, score=lowered[0].score, drop=lowered[0].drop)
            recipe = {**build.recipe, "pinned": {**plans(build.records), **pinned(lowered)}}
            build = replace(build, lowered=lowered, records=(*others, last), recipe=recipe)
            folders = artifact_folders(stage, request.targets)
            if request.timed:
                request.progress(MEASURING, 0, 1)
                writers = timed_writers(request, build, folders)
                asked = opened.scoring.samples.feeds if opened.generator and opened.scoring else ()
                times = measured(
                    build,
                    folders,
                    build.measured.steps,
                    writers,
                    prompts=asked,
                    progress=request.progress,
                )
                build = replace(build, measured=times)
            build = judged(request, build)
            _write(build, folders)
    if checkpoints is not None:
        remove_checkpoints(checkpoints)
    return build


def _stage(request: Request) -> AbstractContextManager[Path | None]:
    """A folder to write into; None for all processes but the first, which lowers and measures alone."""
    return nullcontext() if rank() > 0 else staged(request.folder, overwrite=request.overwrite)


def _checkpoints(request: Request) -> Path | None:
    """Where a pass that trains keeps what an interrupted build goes on from; None where none trains.

    Raises:
        GraphCompressError: the folder cannot be written, or holds something else.
    """
    if not request.pipeline.trains:
        return None
    refuse_other_files(request.training_folder)
    return request.training_folder


@dataclass(frozen=True)
class _Opened:
    """What a request names, read.

    Attributes:
        model: to compress.
        recipe: options that make the build again, with the hashes of all files that were read.
        ctx: what the passes are given.
        scoring: by the task metric, when one is asked for.
        generator: the model as one that writes, where the metric is of what it writes.
    """

    model: Model
    recipe: dict[str, Any]
    ctx: Context
    scoring: Scoring | None
    generator: Generator | None = None


def _open(request: Request) -> _Opened:
    """Read model, teacher and samples, and refuse what no pass or target can handle."""
    model, teacher, metric = _model(request), _teacher(request), request.scored_by
    read_by = [*request.pipeline.passes, *request.targets, *filter(None, [metric])]
    recipe = {**request.recipe, "sha256": input_hashes(request.recipe, model, teacher, read_by)}
    refuse_unsupported(model, request.pipeline.passes)
    request.pipeline.agree(model)
    for target in request.targets:
        target.check_model(model)
    # Asked now: what is computed from NaN is NaN, and no comparison later says where it is from.
    model.check_weights_are_finite()
    written = metric is not None and metrics.is_written(metric)
    if metric is not None and written:
        metrics.pair_for(metric, model)  # refuses a model that does not write, before anything is read
    samples, evaluated, training = _rows(request, model, teacher, written=written)
    generator = source_generator(request, model) if written else None
    scored = prompts(request, generator) if generator else evaluated or samples
    scoring = Scoring(metric, scored, request.progress) if metric and scored else None
    capabilities = common_capabilities(request.targets)
    ctx = Context(samples, capabilities, request.seed, request.progress, training, pinned=request.pinned)
    ctx = ctx if scoring is None else with_metric(ctx, scoring, request, generator)
    return _Opened(model, recipe, ctx, scoring, generator)


def _model(request: Request) -> Model:
    given = request.model
    if not isinstance(given, Model):
        return open_model(given or "", task=request.task)
    return given if request.inplace else given.clone()


def _rows(
    request: Request, model: Model, teacher: Model | None, *, written: bool
) -> tuple[Samples | None, Samples | None, Training | None]:
    """Samples to calibrate with, those to evaluate on where they are others, and what passes learn from.

    A metric of ``written`` texts is evaluated on prompts, which are read elsewhere.
    """
    metric = None if written else request.scored_by
    samples = _samples(request.data, request, model, metric)
    evaluated = None if written else _samples(request.eval_data, request, model, metric)
    learnt = _samples(request.train, request, model, metric, at_once=True)
    if any(found is not None and not len(found) for found in (samples, evaluated, learnt)):
        raise DataError("the samples that were given are none; give at least one, or leave them out")
    if learnt is None:
        return samples, evaluated, None
    learnt, evaluated = Training(learnt, held_out=evaluated or samples if metric else None).divided()
    training = Training(learnt, teacher, evaluated, metric, _checkpoints(request))
    return samples or unrolled(model, learnt.spread(CALIBRATION_ROWS)), evaluated, training


def _teacher(request: Request) -> Model | None:
    given = request.teacher
    if given is None or isinstance(given, Model):
        return given
    # An ONNX file is of one task, and refuses to be told another.
    return open_model(given, task=request.task if is_checkpoint(given) or is_hub_name(given) else None)


def _samples(
    given: Samples | str | Path | None,
    request: Request,
    model: Model,
    metric: Metric | None,
    *,
    at_once: bool = False,
) -> Samples | None:
    if not isinstance(given, (str, Path)):
        return None if given is None else check_lengths(given, model)
    pair = metrics.pair_for(metric, model) if metric else None
    samples = load_samples(
        given, model, tokenizer=request.tokenizer, pair=pair, max_length=request.max_length, at_once=at_once
    )
    if at_once and model.parts:
        return samples
    if needs := longest_needs(samples, model):
        _LOG.warning("%s: %s", given, needs)
    return bounded(samples, model)


def _run(request: Request, opened: _Opened, baseline: Baseline) -> Build:
    """Run the passes; nothing is lowered yet."""
    timer = _step_timer(request, opened, baseline)

    def on_record(record: PassRecord) -> None:
        if timer is not None:
            timer.time(opened.model)
        request.on_record(record)

    records = request.pipeline.run(
        opened.model,
        opened.ctx,
        allow=request.allow,
        require_coverage=request.require_coverage,
        on_record=on_record,
        original=baseline.outputs,
        # A pass leaves a graph to run; what a model writes is scored on the files of an artifact.
        scoring=None if opened.generator else opened.scoring,
    )
    return _unlowered(request, opened, baseline, tuple(records), timer.times if timer else StepTimes())


def _unlowered(
    request: Request,
    opened: _Opened,
    baseline: Baseline,
    records: tuple[PassRecord, ...],
    steps: StepTimes,
) -> Build:
    return Build(
        output=request.folder,
        recipe=opened.recipe,
        before=baseline.size,
        records=records,
        lowered=(),
        reference_invariance=baseline.invariance,
        score=baseline.score,
        before_anatomy=baseline.parts.anatomy,
        anatomy=baseline.parts.left(opened.model),
        depth=baseline.depth.errors(opened.model),
        samples=baseline.samples,
        model=opened.model,
        measured=Measured(steps=steps),
    )


def _step_timer(request: Request, opened: _Opened, baseline: Baseline) -> StepTimer | None:
    """What times the model after every pass; None where nothing is, or another process does."""
    if not request.timed or baseline.file is None or rank() != 0:
        return None
    samples = timing_samples(opened.model, baseline.samples)
    return StepTimer(baseline.file, samples, progress=request.progress)


def _lower(request: Request, opened: _Opened, baseline: Baseline, stage: Path) -> tuple[Artifact, ...]:
    """Write the model files of every target below ``stage``, and verify them there."""
    stages = artifact_folders(stage, request.targets)
    made = [_artifact(request, target, stages[target.name], opened, baseline) for target in request.targets]
    places = artifact_folders(request.folder, request.targets)
    return tuple(replace(artifact, folder=places[artifact.name]) for artifact in made)


def _artifact(request: Request, target: Target, stage: Path, opened: _Opened, baseline: Baseline) -> Artifact:
    model, ctx = opened.model, opened.ctx
    ctx.progress(f"lower for {target.name}", 0, 1)
    stage.mkdir(exist_ok=True)
    with threadpool_limits(limits=1, user_api="blas"):  # how BLAS shares work out decides the last bits
        lower = lower_parts if model.joined else type(target).lower
        lowering = lower(target, model, stage, ctx)
    ctx.progress(f"lower for {target.name}", 1, 1)
    copy_tokenizer(model.source, stage)
    if model.tokens is not None:
        write_without(stage, model.tokens)
    if (longest := agreed_length(model)) is not None:
        write_longest(stage, longest)
    said = dict.fromkeys((*lowering.notes, *write_configuration(model, stage)))
    lowering = replace(lowering, notes=tuple(said))
    run = fitted_run(model, artifact_run(target, stage, lowering.record))
    deployed = lowering.deployed_bytes
    subject = artifact_generator(request, target, stage, model) if opened.generator else run
    score, drop = opened.scoring.judged(subject, "evaluate the artifact") if opened.scoring else (None, None)
    return Artifact(
        target=str(target),
        folder=stage,
        size=ModelSize(model.parameters, folder_bytes(stage) if deployed is None else deployed, macs(model)),
        difference=compare(
            baseline.outputs, run, baseline.feeds, baseline.by_token, samples=baseline.samples
        ),
        invariance=batch_invariance(run, baseline.samples),
        lowering=lowering,
        score=score,
        drop=drop,
        changed=opened.scoring.changed(texts=not request.no_texts) if opened.scoring else (),
        timed=target.timed,
        # Of parts each has an interface of its own, in its own folder.
        inputs=shapes_in(
            baseline.samples.batch([0]), model if model.joined else target.interface(stage) or model
        ),
        own_cache=own_cache_of(request, model, target, stage, baseline.samples),
    )


def _write(build: Build, stages: dict[str, Path]) -> None:
    """Write recipe, report and manifest of every artifact, and what joins them where there are several."""
    for artifact in build.lowered:
        stage, alone = stages[artifact.name], replace(build, lowered=(artifact,))
        (stage / RECIPE).write_text(recipe_text(build.recipe), encoding="utf-8")
        (stage / REPORT).write_text(report.markdown(alone), encoding="utf-8")
        (stage / PAGE).write_text(html(alone), encoding="utf-8")
        if build.benched:
            write_times(stage, times_json(build, artifact))
        # Last, for it holds the hashes of all files beside it.
        write_manifest(stage, manifest(alone, file_hashes(stage)))
    if len(stages) == 1:
        return
    whole = next(iter(stages.values())).parent
    (whole / REPORT).write_text(report.markdown(build), encoding="utf-8")
    (whole / PAGE).write_text(html(build), encoding="utf-8")
    write_manifest(whole, {"artifacts": list(stages)})
