"""Times of a build on this machine: after every pass, at every shape, by operator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from graphcompress.artifact.sequences import artifact_run, fitted_run, source_run
from graphcompress.build.result import Artifact, Build
from graphcompress.data.made_up import synthetic_samples
from graphcompress.data.samples import Samples
from graphcompress.errors import DataError, UsageError
from graphcompress.files.reading.hashes import sha256
from graphcompress.files.runtime import Feed, runner_of, session_of
from graphcompress.files.temporary import Temporary
from graphcompress.generation.generator import Generator, Prompt
from graphcompress.graph.model import Model
from graphcompress.graph.runner import Runner
from graphcompress.latency.table import signature
from graphcompress.measure.bench import WRITTEN, ShapeResult, bench, shaped_feed
from graphcompress.measure.cache import MeasurementCache, machine_facts
from graphcompress.measure.measured import Measured, Operators, StepTimes
from graphcompress.measure.operators import operator_ms
from graphcompress.measure.timing import (
    BENCH_SECONDS,
    STEP_PROFILED_RUNS,
    STEP_ROUNDS,
    STEP_SECONDS,
    WRITING_ROUNDS,
    WRITING_SECONDS,
    Ratio,
)
from graphcompress.measure.writing_speed import bench_writing
from graphcompress.plugin.base import Target
from graphcompress.plugin.context import Context, Progress, no_progress
from graphcompress.plugin.targeting import parse_target
from graphcompress.reporting.summary import contender

MEASURING = "measure speed"
"""The step of a run that measures, by the text that progress is reported under."""

WRITING_SHAPES = ("1x32", "8x32")
"""Texts and new tokens of each at which a model that writes is timed: a line, alone and for several users."""

_STEP_SHAPES = ("1x128", "1xnatural")
"""The shape at which passes are timed, and the one where a model does not run at it."""


class StepTimer:
    """Times the model after each pass in turns with ``file``, the model as it came in."""

    def __init__(self, file: Path, samples: Samples, *, progress: Progress = no_progress) -> None:
        self._file, self._samples, self._progress = file, samples, progress
        self._shapes: tuple[str, ...] = _STEP_SHAPES
        self._found: list[ShapeResult] = []

    def time(self, model: Model) -> None:
        """Measure ``model`` as it is now; where a run takes too long, nothing is kept."""
        with Runner(self._file, prepack=True) as before, Runner(model, prepack=True) as after:
            for shape in self._shapes:
                (found,) = bench(
                    {"before": before, "after": after},
                    self._samples,
                    shapes=[shape],
                    rounds=STEP_ROUNDS,
                    seconds=STEP_SECONDS,
                    progress=self._progress,
                )
                if found.ratios:
                    self._shapes = (shape,)
                    self._found.append(found)
                    return
        self._shapes = ()

    @property
    def times(self) -> StepTimes:
        """What was measured, where it was after every pass.

        Ratios are within one measurement, so that all are told by one time of the model as it came in.
        """
        if not self._shapes or not self._found:
            return StepTimes()
        first = self._found[0].timings["before"].median_ms
        ratios = [found.ratios["after"].median for found in self._found]
        return StepTimes(self._found[0].shape, (first, *(first / ratio for ratio in ratios)))


def artifact_speed(
    file: Path, target: Target, samples: Samples, ctx: Context
) -> Callable[[Model, Sequence[str]], list[Ratio]]:
    """A function that says how many times as fast as ``file`` the artifact of a model is at some shapes.

    The artifact is made for ``target`` as that of a build is, in a temporary folder. What was measured is
    kept, as all times are: the same build takes the same decisions again.
    """
    # What was pinned is of the artifact that was built, whose sizes are others.
    alone = replace(ctx, pinned={}, on_trial=True)

    def ratios(model: Model, shapes: Sequence[str]) -> list[Ratio]:
        # Most builds never ask: only now is the file hashed, and what was kept read.
        store = ctx.measurements or MeasurementCache()
        key = f"times as fast {target} {' '.join(shapes)} {sha256(file)} {signature(model)}"
        known = store.get(key)
        if known is None:
            found = _in_turns(file, model, target, timing_samples(model, samples), shapes, alone)
            known = {shape: [one.median, one.low, one.high] for shape, one in zip(shapes, found, strict=True)}
            store.put(key, known)
        return [Ratio(*known[shape]) for shape in shapes]

    return ratios


def _in_turns(
    file: Path, model: Model, target: Target, samples: Samples, shapes: Sequence[str], ctx: Context
) -> list[Ratio]:
    """How many times as fast as ``file`` the artifact of ``model`` is, made here and removed again."""
    with Temporary() as folder:
        lowering = target.lower(model, folder, ctx)
        run = fitted_run(model, artifact_run(target, folder, lowering.record))
        contenders = {"before": runner_of(session_of(file)), "after": run}
        found = bench(contenders, samples, shapes=shapes, progress=ctx.progress)
    for result in found:
        if not result.ratios:
            raise UsageError(f"the model cannot be timed at {result.asked}: {_why(result)}")
    return [result.ratios["after"] for result in found]


def _why(result: ShapeResult) -> str:
    return result.skipped or "; ".join(result.failed.values())


def measured(
    build: Build,
    folders: Mapping[str, Path],
    steps: StepTimes,
    writers: Mapping[str, Generator],
    *,
    prompts: Sequence[Prompt] = (),
    progress: Progress = no_progress,
) -> Measured:
    """Times of the model that came in and of the artifacts in ``folders``, those that this machine runs.

    Those of ``writers`` are timed while they write, too, after ``prompts`` or after made-up ones.
    """
    model, artifacts = build.model, [artifact for artifact in build.lowered if artifact.timed]
    if not artifacts or model is None or model.path is None:
        return Measured()
    source = model.source or model.path
    contenders = {"before": source_run(source) if source.is_dir() else runner_of(session_of(model.path))}
    for artifact in artifacts:
        run = artifact_run(parse_target(artifact.target), folders[artifact.name], artifact.record)
        contenders[contender(build, artifact)] = fitted_run(model, run)
    samples = timing_samples(model, build.samples)
    shapes = bench(contenders, samples, seconds=BENCH_SECONDS, progress=progress)
    of_one_file = not model.parts and not source.is_dir()
    files = {"before": model.path, **_files(build, artifacts, folders)} if of_one_file else {}
    operators = {}
    for number, result in enumerate(shapes):
        progress("profile operators", number, len(shapes))
        if result.timings:
            feed, _ = shaped_feed(samples, result.asked)
            operators[result.shape] = _operators(files, model, feed, result)
    progress("profile operators", len(shapes), len(shapes))
    facts = {name: machine_facts()[name] for name in ("processor", "architecture", "cores", "onnxruntime")}
    return Measured(facts, (*shapes, *_written(writers, prompts, progress)), steps, operators)


def _written(
    writers: Mapping[str, Generator], prompts: Sequence[Prompt], progress: Progress
) -> list[ShapeResult]:
    """How fast ``writers`` write; nothing where there are none beside the model that came in."""
    if len(writers) < 2:
        return []
    try:
        found = bench_writing(
            writers,
            WRITING_SHAPES,
            prompts=prompts,
            rounds=WRITING_ROUNDS,
            seconds=WRITING_SECONDS,
            progress=progress,
        )
    except DataError as error:  # prompts and new tokens are more than the positions
        shapes = (shape.replace("x", "×") for shape in WRITING_SHAPES)
        return [ShapeResult(f"{shape}{WRITTEN}", "before", skipped=str(error)) for shape in shapes]
    return [result.as_shape() for result in found]


def timing_samples(model: Model, samples: Samples) -> Samples:
    """``samples``, or ones of similar sizes where those were made up to be varied."""
    return synthetic_samples(model) if samples.synthetic and not model.parts else samples


def _files(build: Build, artifacts: list[Artifact], folders: Mapping[str, Path]) -> dict[str, Path]:
    """The ONNX files of the artifacts that ONNX Runtime's CPU provider alone runs, as they are timed."""
    found = {}
    for artifact in artifacts:
        target, folder = parse_target(artifact.target), folders[artifact.name]
        if target.runs_on_cpu_provider(folder):
            found[contender(build, artifact)] = folder / target.model_file
    return found


def _operators(files: Mapping[str, Path], model: Model, feed: Feed, result: ShapeResult) -> Operators:
    return {
        name: operator_ms(file, feed if name == result.first else model.fitted(feed), runs=STEP_PROFILED_RUNS)
        for name, file in files.items()
        if name in result.timings
    }
