"""One build: load, run the passes, lower, verify the artifact itself, write it."""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from graphcompress import metrics, registry, report
from graphcompress.analysis.cost import macs
from graphcompress.artifact.folder import (
    MANIFEST,
    disk_errors,
    file_hashes,
    read_manifest,
    refuse_existing,
    staged,
    write_manifest,
)
from graphcompress.artifact.inputs import copy_tokenizer, folder_bytes, input_hashes, model_bytes, path_text
from graphcompress.artifact.manifest import manifest
from graphcompress.artifact.recipe import RECIPE, Recipe
from graphcompress.base import Context, Pass, Progress, Target, Training, no_progress
from graphcompress.capturing.checkpoint import is_checkpoint
from graphcompress.capturing.source import open_model
from graphcompress.data.load import Samples, load_samples
from graphcompress.errors import InvalidModelError, UsageError
from graphcompress.metrics import Metric, Score
from graphcompress.model import Model
from graphcompress.options import build, split_calls
from graphcompress.pipeline import CHECK_BATCH, PassRecord, Pipeline, Size, check_samples
from graphcompress.processes import rank
from graphcompress.runtime import Feed, Runner, session_of
from graphcompress.support import refuse_unsupported
from graphcompress.verify import Difference, Invariance, Run, batch_invariance, compare

CALIBRATION_ROWS = 512
"""Rows of the samples to train on that serve for calibration where there are no others."""


@dataclass(frozen=True)
class Build:
    """What one build did.

    Attributes:
        output: the artifact's folder.
        recipe: what makes it again.
        before: size of the model that came in.
        after: size of the artifact: all its files.
        records: one per pass, in order.
        artifact: outputs of the artifact, run by the target, against the model that came in.
        invariance: whether the artifact's answers depend on batch mates or padding.
        reference_invariance: the same for the model that came in.
        lowering: what the target recorded.
        score_before, score_after: the task metric, when one was asked for.
        samples: on which the outputs were compared.
        model: what the passes made of the model; ``model.path`` is the file of the one that came in.
    """

    output: Path
    recipe: Recipe
    before: Size
    after: Size
    records: tuple[PassRecord, ...]
    artifact: Difference
    invariance: Invariance
    reference_invariance: Invariance
    lowering: Mapping[str, Any] = field(default_factory=dict)
    score_before: Score | None = None
    score_after: Score | None = None
    samples: Samples = field(default_factory=lambda: Samples([]), repr=False)
    model: Model | None = field(default=None, repr=False)


def optimize(
    model: Model | str | Path,
    passes: str | Pipeline | Collection[Pass] = "simplify,int8",
    *,
    target: str | Target = "cpu",
    data: Samples | str | Path | None = None,
    tokenizer: str | Path | None = None,
    metric: str | None = None,
    eval_data: Samples | str | Path | None = None,
    train: Samples | str | Path | None = None,
    teacher: Model | str | Path | None = None,
    output: str | Path | None = None,
    seed: int = 0,
    allow: Collection[str] = (),
    require_coverage: float = 0.0,
    overwrite: bool = False,
    progress: Progress = no_progress,
    on_record: Callable[[PassRecord], None] = lambda record: None,
) -> Build:
    """Compress ``model`` with ``passes``, lower it for ``target``, verify and write the artifact.

    ``model`` is an ONNX file, a Hugging Face folder (or a name on its hub), or a loaded Model.

    ``simplify`` runs first unless the passes name it. ``data`` are calibration samples (a path or loaded
    samples; rows of ``train`` without), ``eval_data`` those of the task ``metric`` (``data`` without, or rows
    of ``train`` that are held out). A pass that trains learns from ``train`` what ``teacher`` answers (by
    default the model as it came in); its checkpoints lie in ``<output>.training`` until the build is done,
    and an interrupted build goes on from there. ``output`` is by default ``<model>-<target>`` in the working
    folder; an existing artifact is only replaced with ``overwrite``. A model given as an object is changed in
    place, and its recipe names no file.

    Raises:
        GraphCompressError: one of its kinds for every way in which this can fail; nothing is written then.
    """
    pipeline = _with_simplify(passes if isinstance(passes, Pipeline) else _pipeline(passes))
    lowering_target = target if isinstance(target, Target) else parse_target(target)
    for name in allow:
        registry.pass_class(name)
    pipeline.check_request(allow, require_coverage)
    chosen = metrics.metric(metric) if metric else None
    if eval_data is not None and chosen is None:
        raise UsageError("--eval-data is read by a metric only; name one with --metric")
    if chosen and eval_data is None and data is None and train is None:
        raise UsageError(f"metric {metric!r} needs samples; give them with --eval-data or --data")
    _check_training(pipeline, train, teacher)
    source = model.path if isinstance(model, Model) else Path(model)
    folder = Path(output) if output else Path(f"{source.stem if source else 'model'}-{lowering_target.name}")
    refuse_existing(folder, overwrite=overwrite)
    checkpoints = folder.with_name(f"{folder.name}.training")

    with disk_errors():
        loaded = model if isinstance(model, Model) else open_model(model)
        if rank() > 0:  # all processes of a launcher train, one writes
            unread = Path(tempfile.mkdtemp(prefix="graphcompress-"))
            loaded.own(unread)
            folder = unread / folder.name
        recipe = Recipe(
            model=path_text(model),
            passes=str(pipeline),
            target=str(lowering_target),
            data=path_text(data),
            tokenizer=path_text(tokenizer),
            metric=metric,
            eval_data=path_text(eval_data),
            train=path_text(train),
            teacher=path_text(teacher),
            seed=seed,
            allow=tuple(sorted(allow)),
            require_coverage=require_coverage,
        )
        recipe = replace(recipe, sha256=input_hashes(recipe, loaded))
        refuse_unsupported(loaded)
        loaded.check_weights_are_finite()
        pair = chosen.pair if chosen else "joint"
        samples, held_out, learnt = (
            load_samples(given, loaded, tokenizer=tokenizer, pair=pair)
            if isinstance(given, (str, Path))
            else given
            for given in (data, eval_data, train)
        )
        training = None
        if learnt is not None:
            guide = open_model(teacher) if isinstance(teacher, (str, Path)) else teacher
            learnt, held_out = Training(learnt, held_out=held_out or samples if chosen else None).divided()
            training = Training(learnt, guide, held_out, metric, checkpoints)
            samples = samples or learnt.spread(CALIBRATION_ROWS)
        ctx = Context(samples, lowering_target.capabilities, seed, progress, training)
        before = _Reference(loaded, ctx, chosen, held_out or samples)
        records = pipeline.run(
            loaded, ctx, allow=allow, require_coverage=require_coverage, on_record=on_record
        )
        with staged(folder, overwrite=overwrite) as stage:
            progress("lower", 0, 1)
            lowering = lowering_target.lower(loaded, stage, ctx)
            progress("lower", 1, 1)
            copy_tokenizer(loaded.path, stage)
            run = lowering_target.session(stage)
            result = Build(
                output=folder,
                recipe=recipe,
                before=before.size,
                after=Size(loaded.parameters, folder_bytes(stage), macs(loaded)),
                records=tuple(records),
                artifact=compare(before.outputs, run, before.feeds),
                invariance=batch_invariance(run, before.samples),
                reference_invariance=before.invariance,
                lowering=lowering,
                score_before=before.score,
                score_after=before.score_of(run),
                samples=before.samples,
                model=loaded,
            )
            (stage / RECIPE).write_text(recipe.to_toml(), encoding="utf-8")
            (stage / report.REPORT).write_text(report.markdown(result), encoding="utf-8")
            write_manifest(stage, manifest(result, file_hashes(stage)))
        if rank() == 0:
            shutil.rmtree(checkpoints, ignore_errors=True)
    return result


class _Reference:
    """The model as it came in: its size, outputs, batch invariance and score."""

    def __init__(self, model: Model, ctx: Context, chosen: Metric | None, held_out: Samples | None) -> None:
        self.samples = check_samples(model, ctx)
        self.feeds: list[Feed] = list(self.samples.batches(CHECK_BATCH))
        self.score: Score | None = None
        self._metric, self._held_out, self._progress = chosen, held_out, ctx.progress
        if chosen and held_out:
            metrics.check_columns(chosen, held_out)
        with Runner(model) as runner:
            self.outputs = [runner(feed) for feed in self.feeds]
            self.invariance = batch_invariance(runner, self.samples)
            self._answers = self._answers_of(runner, "evaluate the original")
            self.size = Size(model.parameters, model_bytes(model) or runner.bytes_on_disk, macs(model))
        if chosen and held_out and self._answers is not None:
            self.score = metrics.score(chosen, self._answers, self._answers, held_out)

    def score_of(self, run: Run) -> Score | None:
        """The task metric of another model on the same samples."""
        answers = self._answers_of(run, "evaluate the artifact")
        if self._metric is None or self._held_out is None or answers is None or self._answers is None:
            return None
        return metrics.score(self._metric, answers, self._answers, self._held_out)

    def _answers_of(self, run: Run, text: str) -> np.ndarray | None:
        if self._metric is None or self._held_out is None:
            return None
        return metrics.answers(self._metric, run, self._held_out, progress=self._progress, text=text)


def session(path: str | Path) -> Run:
    """A function from a feed to outputs by name: an artifact on the runtime it was made for, or an ONNX file.

    Raises:
        UsageError: the folder is not an artifact.
        InvalidModelError: there is no such file.
    """
    path = Path(path)
    if path.is_dir():
        return parse_target(read_manifest(path)["recipe"]["target"]).session(path)
    if not path.is_file():
        raise InvalidModelError(f"{path}: no such file or folder")
    runtime = session_of(path)
    names = [output.name for output in runtime.get_outputs()]

    def run(feed: Feed) -> dict[str, np.ndarray]:
        return dict(zip(names, runtime.run(names, dict(feed)), strict=True))

    return run


def model_file(path: str | Path) -> Path:
    """The ONNX file of an artifact, or ``path`` itself (also when it is a checkpoint).

    Raises:
        UsageError: the folder is not an artifact, or has no ONNX file.
    """
    path = Path(path)
    if not path.is_dir() or is_checkpoint(path):
        return path
    names = sorted(name for name in read_manifest(path)["files"] if name.endswith(".onnx"))
    if not names:
        raise UsageError(f"{path}: this artifact holds no ONNX file, see {path / MANIFEST}")
    return path.joinpath(names[0])


def parse_target(text: str) -> Target:
    """Read ``cpu`` or ``cpu{option=value}``.

    Raises:
        UsageError: an unknown target or option, or not exactly one target.
    """
    calls = split_calls(text)
    if len(calls) != 1:
        raise UsageError(f"expected one target, got {text!r}; known: {', '.join(registry.names('targets'))}")
    name, options = calls[0]
    return build(registry.target_class(name), name, options)


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
    return Pipeline((registry.pass_class("simplify")(), *pipeline.passes))
