"""One build: load, run the passes, lower, verify the artifact itself, write it."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from graphcompress.analysis.cost import macs
from graphcompress.build import report
from graphcompress.build.folder import disk_errors, file_hashes, refuse_existing, staged, write_manifest
from graphcompress.build.inputs import folder_bytes, input_hashes, path_text
from graphcompress.build.manifest import manifest
from graphcompress.build.original import Original
from graphcompress.build.recipe import RECIPE, Recipe
from graphcompress.build.support import refuse_unsupported
from graphcompress.capturing.checkpoint import is_checkpoint
from graphcompress.capturing.source import is_hub_name, open_model
from graphcompress.data.load import Samples, load_samples
from graphcompress.data.tokenizer_files import copy_tokenizer
from graphcompress.errors import DataError, UsageError
from graphcompress.graph.model import Model
from graphcompress.measure import metrics
from graphcompress.measure.metrics import Score
from graphcompress.measure.verify import Difference, Invariance, batch_invariance, compare
from graphcompress.pipeline.judging import Size
from graphcompress.pipeline.pipeline import PassRecord, Pipeline
from graphcompress.plugin.base import Context, Lowering, Pass, Progress, Target, Training, no_progress
from graphcompress.plugin.registry import PASSES
from graphcompress.plugin.targeting import artifact_folders, common_capabilities, distinct, parse_targets
from graphcompress.training.processes import rank

CALIBRATION_ROWS = 512
"""Rows of the samples to train on that serve for calibration where there are no others."""


@dataclass(frozen=True)
class Lowered:
    """What one target made of the compressed model, and how it answers.

    Attributes:
        target: as the user would type it.
        folder: of the artifact.
        size: of the artifact: all its files but the tokenizer.
        difference: outputs of the artifact, run by the target, against the model that came in.
        invariance: whether the artifact's answers depend on batch mates or padding.
        lowering: what the target says about its work.
        score: the task metric, when one was asked for.
        timed: whether times on this machine are those of the target's runtime.
    """

    target: str
    folder: Path
    size: Size
    difference: Difference
    invariance: Invariance
    lowering: Lowering = field(default_factory=Lowering)
    score: Score | None = None
    timed: bool = True

    @property
    def name(self) -> str:
        """The target's name, without its options."""
        return self.target.partition("{")[0]

    @property
    def record(self) -> Mapping[str, Any]:
        """What the target says about its work, as the manifest keeps it."""
        return self.lowering.record


@dataclass(frozen=True)
class Build:
    """What one build did.

    Attributes:
        output: folder of the artifact, or of one artifact per target.
        recipe: what makes it again.
        before: size of the model that came in.
        records: one per pass, in order.
        lowered: one per target, in the order in which they were named.
        reference_invariance: whether the answers of the model that came in depend on batch mates or padding.
        score: the task metric of the model that came in, when one was asked for.
        samples: on which the outputs were compared.
        model: what the passes made of the model; ``model.path`` is the file of the one that came in.
    """

    output: Path
    recipe: Recipe
    before: Size
    records: tuple[PassRecord, ...]
    lowered: tuple[Lowered, ...]
    reference_invariance: Invariance
    score: Score | None = None
    samples: Samples = field(default_factory=lambda: Samples([]), repr=False)
    model: Model | None = field(default=None, repr=False)


def optimize(
    model: Model | str | Path,
    passes: str | Pipeline | Collection[Pass] = "simplify,int8",
    *,
    target: str | Target | Collection[Target] = "cpu",
    data: Samples | str | Path | None = None,
    tokenizer: str | Path | None = None,
    metric: str | None = None,
    eval_data: Samples | str | Path | None = None,
    train: Samples | str | Path | None = None,
    teacher: Model | str | Path | None = None,
    task: str | None = None,
    output: str | Path | None = None,
    seed: int = 0,
    allow: Collection[str] = (),
    require_coverage: float = 0.0,
    overwrite: bool = False,
    progress: Progress = no_progress,
    on_record: Callable[[PassRecord], None] = lambda record: None,
) -> Build:
    """Compress ``model`` with ``passes``, lower it for ``target``, verify and write the artifact.

    ``model`` is an ONNX file, a loaded Model, or a Hugging Face folder (or a name on its hub), which is
    exported for ``task``. For several targets (``"cpu,mobile"``) it is compressed once, to what all of them
    can run, and lowered for each.

    ``simplify`` runs first unless the passes name it. ``data`` are calibration samples (a path or loaded
    samples; rows of ``train`` without), ``eval_data`` those of the task ``metric`` (``data`` without, or rows
    of ``train`` that are held out). A pass that trains learns from ``train`` what ``teacher`` answers (by
    default the model as it came in); its checkpoints lie in ``<output>.training`` until the build is done,
    and an interrupted build goes on from there. ``output`` is by default ``<model>-<target>`` in the working
    folder, for several targets ``<model>-compressed`` with a folder for each; an existing artifact is only
    replaced with ``overwrite``. A model given as an object is changed in place, and its recipe names no file.

    Raises:
        GraphCompressError: one of its kinds for every way in which this can fail; nothing is written then.
    """
    pipeline = _with_simplify(passes if isinstance(passes, Pipeline) else _pipeline(passes))
    targets = _targets(target)
    for each in targets:
        each.check()
        pipeline.check_target(each.name, each.capabilities, calibrated=data is not None or train is not None)
    capabilities = common_capabilities(targets)
    for name in allow:
        PASSES.find(name)
    pipeline.check_request(allow, require_coverage)
    chosen = metrics.metric(metric) if metric else None
    if eval_data is not None and chosen is None:
        raise UsageError("--eval-data is read by a metric only; name one with --metric")
    if chosen and eval_data is None and data is None and train is None:
        raise UsageError(f"metric {metric!r} needs samples; give them with --eval-data or --data")
    _check_training(pipeline, train, teacher)
    source = model.path if isinstance(model, Model) else Path(model)
    kind = targets[0].name if len(targets) == 1 else "compressed"
    folder = Path(output) if output else Path(f"{source.stem if source else 'model'}-{kind}")
    refuse_existing(folder, overwrite=overwrite)
    checkpoints = folder.with_name(f"{folder.name}.training")

    with disk_errors():
        loaded = model if isinstance(model, Model) else open_model(model, task=task)
        recipe = Recipe(
            model=path_text(model),
            passes=str(pipeline),
            target=",".join(map(str, targets)),
            data=path_text(data),
            tokenizer=path_text(tokenizer),
            metric=metric,
            eval_data=path_text(eval_data),
            train=path_text(train),
            teacher=path_text(teacher),
            task=task,
            seed=seed,
            allow=tuple(sorted(allow)),
            require_coverage=require_coverage,
        )
        guide = _teacher(teacher, task)
        recipe = replace(recipe, sha256=input_hashes(recipe, loaded, guide, targets))
        refuse_unsupported(loaded)
        for each in targets:
            each.check_model(loaded)
        loaded.check_weights_are_finite()
        pair = chosen.pair if chosen else "joint"
        samples, held_out, learnt = (
            load_samples(given, loaded, tokenizer=tokenizer, pair=pair)
            if isinstance(given, (str, Path))
            else given
            for given in (data, eval_data, train)
        )
        if any(given is not None and not len(given) for given in (samples, held_out, learnt)):
            raise DataError("the samples that were given are none; give at least one, or leave them out")
        training = None
        if learnt is not None:
            learnt, held_out = Training(learnt, held_out=held_out or samples if chosen else None).divided()
            training = Training(learnt, guide, held_out, metric, checkpoints)
            samples = samples or learnt.spread(CALIBRATION_ROWS)
        ctx = Context(samples, capabilities, seed, progress, training)
        file = None if isinstance(model, Model) else loaded.path
        before = Original(loaded, ctx, chosen, held_out or samples, file)
        records = pipeline.run(
            loaded,
            ctx,
            allow=allow,
            require_coverage=require_coverage,
            on_record=on_record,
            original=before.outputs,
        )
        result = Build(
            output=folder,
            recipe=recipe,
            before=before.size,
            records=tuple(records),
            lowered=(),
            reference_invariance=before.invariance,
            score=before.score,
            samples=before.samples,
            model=loaded,
        )
        if rank() > 0:  # nothing measures beside the first, which lowers alone
            return result
        with staged(folder, overwrite=overwrite) as stage:
            stages = artifact_folders(stage, targets)
            lowered = [_lower(it, stages[it.name], loaded, ctx, before) for it in targets]
            places = artifact_folders(folder, targets)
            result = replace(result, lowered=tuple(replace(it, folder=places[it.name]) for it in lowered))
            for it in result.lowered:
                _describe(replace(result, lowered=(it,)), stages[it.name])
            if len(targets) > 1:
                (stage / report.REPORT).write_text(report.markdown(result), encoding="utf-8")
                write_manifest(stage, {"artifacts": [it.name for it in targets]})
        shutil.rmtree(checkpoints, ignore_errors=True)
    return result


def _targets(given: str | Target | Collection[Target]) -> tuple[Target, ...]:
    if isinstance(given, str):
        return parse_targets(given)
    return (given,) if isinstance(given, Target) else distinct(tuple(given))


def _teacher(given: Model | str | Path | None, task: str | None) -> Model | None:
    if given is None or isinstance(given, Model):
        return given
    return open_model(given, task=task if is_checkpoint(given) or is_hub_name(given) else None)


def _lower(target: Target, stage: Path, model: Model, ctx: Context, before: Original) -> Lowered:
    """Write and verify the artifact for ``target`` in ``stage``."""
    ctx.progress(f"lower for {target.name}", 0, 1)
    stage.mkdir(exist_ok=True)
    lowering = target.lower(model, stage, ctx)
    ctx.progress(f"lower for {target.name}", 1, 1)
    copy_tokenizer(model.path, stage)
    run = target.session(stage)
    deployed = lowering.deployed_bytes
    return Lowered(
        target=str(target),
        folder=stage,
        size=Size(model.parameters, folder_bytes(stage) if deployed is None else deployed, macs(model)),
        difference=compare(before.outputs, run, before.feeds, before.by_token, samples=before.samples),
        invariance=batch_invariance(run, before.samples),
        lowering=lowering,
        score=before.score_of(run),
        timed=target.timed,
    )


def _describe(build: Build, stage: Path) -> None:
    """Write recipe, report and manifest of the artifact in ``stage``, the only one of ``build``."""
    (stage / RECIPE).write_text(build.recipe.to_toml(), encoding="utf-8")
    (stage / report.REPORT).write_text(report.markdown(build), encoding="utf-8")
    write_manifest(stage, manifest(build, file_hashes(stage)))


def _check_training(pipeline: Pipeline, train: object, teacher: object) -> None:
    if pipeline.trains and train is None:
        raise UsageError(f"{pipeline} trains; give samples to train on with --train")
    if not pipeline.trains and (train is not None or teacher is not None):
        raise UsageError(
            f"--train and --teacher are read by a pass that trains, {pipeline} has none: distill"
        )


def _pipeline(passes: str | Collection[Pass]) -> Pipeline:
    return Pipeline.parse(passes) if isinstance(passes, str) else Pipeline(passes)


def _with_simplify(pipeline: Pipeline) -> Pipeline:
    if any(step.name == "simplify" for step in pipeline.passes):
        return pipeline
    return Pipeline((PASSES.find("simplify")(), *pipeline.passes))
