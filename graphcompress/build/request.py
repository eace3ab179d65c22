"""What a build is asked for: the one place from which signature, command line, recipe and manifest follow."""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphcompress.build.goals import MaxDrop
from graphcompress.errors import UsageError
from graphcompress.plugin.base import Pass, Target
from graphcompress.plugin.context import Progress, no_progress
from graphcompress.plugin.registry import PASSES
from graphcompress.plugin.sizes import parse_size
from graphcompress.plugin.targeting import common_capabilities, distinct, parse_targets
from graphcompress.plugin.task import MAX_LENGTH, WINDOW_TOKENS, Metric, check_max_length

if TYPE_CHECKING:
    from graphcompress.data.samples import Samples
    from graphcompress.graph.model import Model
    from graphcompress.measure.own_metric import Function
    from graphcompress.pipeline.pipeline import PassRecord, Pipeline


def asked(
    default: Any,  # noqa: ANN401 - as its field
    help: str,
    group: str = "",
    *,
    unset: str = "",
    flags: tuple[str, ...] = (),
    decides: bool = True,
    typed: bool = True,
) -> Any:  # noqa: ANN401 - as its field
    """A field of :class:`Request`.

    Args:
        default: its value where nothing is given.
        help: its line on the command line and in ``help(graphcompress.optimize)``.
        group: the heading under which the command line shows it.
        unset: what happens without a value; by itself the default, and "none" for None and ().
        flags: its names on the command line, where it has others than its own.
        typed: whether the command line has it.
        decides: whether the files of the artifact depend on it, so that recipe and manifest hold it.
    """
    metadata = {
        "help": help,
        "group": group,
        "unset": unset or ("none" if default in (None, ()) else ""),
        "flags": flags,
        "decides": decides,
        "typed": typed,
    }
    if isinstance(default, dict):
        return dataclasses.field(default_factory=dict, metadata=metadata)
    return dataclasses.field(default=default, metadata=metadata)


MODEL, DATA, GOALS, OUTPUT = "Model", "Data", "Goals", "Output"
"""Headings of the options on the command line."""


@dataclass(frozen=True)
class Request:
    """Everything that one build is asked for; ``optimize`` takes it whole, or its fields as arguments.

    The recipe of a model that is given as an object names no file.

    Raises:
        UsageError: a value of another type than its field.
    """

    model: Model | str | Path | None = asked(
        None, "ONNX file, Hugging Face folder or name on its hub.", unset="that of --recipe"
    )
    passes: str | Pipeline | Collection[Pass] = asked(
        "simplify,int8",
        "Passes in order, such as 'kron{rank=2},prune,int8'; simplify runs first by itself.",
        MODEL,
    )
    _: KW_ONLY
    target: str | Target | Collection[Target] = asked(
        "cpu", "Runtime to lower for; several, such as cpu,mobile, share the work.", MODEL
    )
    data: Samples | str | Path | None = asked(
        None, "Samples: .jsonl, .csv, .tsv, .parquet or .npz; columns named like the inputs, or texts.", DATA
    )
    tokenizer: str | Path | None = asked(
        None, "tokenizer.json or its folder, for samples that are texts.", DATA, unset="beside the model"
    )
    max_length: int | None = asked(
        None,
        "Tokens after which a text of the samples is cut; of question answering, those of a window.",
        DATA,
        unset=f"{MAX_LENGTH}, of a window {WINDOW_TOKENS}",
    )
    metric: str | Metric | Function | None = asked(
        None,
        "Task metric, before and after, such as accuracy (graphcompress metrics), or my_file.py:function.",
        DATA,
    )
    eval_data: Samples | str | Path | None = asked(
        None, "Samples for the metric.", DATA, unset="those of --data, or held out of --train"
    )
    train: Samples | str | Path | None = asked(None, "Samples that a pass such as distill learns from.", DATA)
    teacher: Model | str | Path | None = asked(
        None,
        "ONNX file or Hugging Face folder whose answers are learned.",
        DATA,
        unset="the model as it came in",
    )
    task: str | None = asked(
        None,
        "What a checkpoint is exported for, as in graphcompress export.",
        MODEL,
        unset="as the checkpoint says",
    )
    allow: Collection[str] = asked((), "Accept a broken contract of this pass; may be repeated.", GOALS)
    require_coverage: float = asked(
        0.0, "Fail when a lossy pass touches a smaller share (0-1) of the parameters.", GOALS, unset="none"
    )
    max_drop: str | None = asked(
        None, "Most that the metric may become worse, in its units or as a share: 0.01 or 1%.", GOALS
    )
    confidence: float = asked(
        0.0,
        "How sure (0.5-1) the drop must be to be no larger than --max-drop, by its standard error.",
        GOALS,
        unset="the figure itself counts",
    )
    min_speedup: float = asked(
        0.0,
        "How many times as fast as before the artifact must be, at each shape that is measured.",
        GOALS,
        unset="none",
    )
    max_size: str | None = asked(None, "Most that the files may take, such as 25MB or 24MiB.", GOALS)
    output: str | Path | None = asked(
        None,
        "Folder of the artifact.",
        OUTPUT,
        unset="<model>-<target>",
        flags=("--output", "-o"),
        decides=False,
    )
    no_texts: bool = asked(
        False,
        "Keep what the data say out of manifest and report: of changed answers only row and distance.",
        OUTPUT,
    )
    seed: int = asked(0, "For everything random.", MODEL)
    overwrite: bool = asked(False, "Replace an existing artifact.", OUTPUT, decides=False)
    inplace: bool = asked(
        False,
        "Compress a model that is given as an object itself, instead of a copy.",
        decides=False,
        typed=False,
    )
    bench: bool = asked(
        False,
        "Measure latency before and after, and after every pass, for result and report.",
        decides=False,
        typed=False,
    )
    sha256: Mapping[str, str] = asked({}, "Path → SHA-256 of a file that must not have changed.")
    pinned: Mapping[str, str] = asked({}, "Target or pass → what an earlier build measured and chose.")
    progress: Progress = asked(no_progress, "Called on long work.", decides=False)
    on_record: Callable[[PassRecord], None] = asked(
        lambda record: None, "Called after every pass.", decides=False
    )

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            value = getattr(self, field.name)
            if value is not field.default and not _fits(field, value):
                raise UsageError(f"{field.name} must be {_WORDS.get(kind(field), 'a text')}, got {value!r}")

    @cached_property
    def pipeline(self) -> Pipeline:
        """The passes, with those in front that go first and are not named.

        Raises:
            UsageError: a text that is no pipeline.
        """
        # Imported late: the command line reads a request before anything heavy is loaded.
        from graphcompress.pipeline.pipeline import Pipeline, first_passes

        given = self.passes
        if isinstance(given, str):
            given = Pipeline.parse(given)
        steps = given.passes if isinstance(given, Pipeline) else tuple(given)
        return Pipeline((*first_passes(steps), *steps))

    @cached_property
    def targets(self) -> tuple[Target, ...]:
        """The targets, no two of one name.

        Raises:
            UsageError: an unknown target or option, none at all, or one of them twice.
        """
        if isinstance(self.target, str):
            return parse_targets(self.target)
        return (self.target,) if isinstance(self.target, Target) else distinct(tuple(self.target))

    @cached_property
    def scored_by(self) -> Metric | None:
        """The metric.

        Raises:
            UsageError: an unknown metric or option, or a function that is none.
            MetricError: the file of the function fails.
        """
        from graphcompress.measure.metrics import metric

        return metric(self.metric) if self.metric else None

    @property
    def folder(self) -> Path:
        """Where the artifact goes, or a folder of artifacts for several targets."""
        if self.output:
            return Path(self.output)
        source = Path(self.model) if isinstance(self.model, (str, Path)) else self.model and self.model.path
        kind = self.targets[0].name if len(self.targets) == 1 else "compressed"
        return Path(f"{source.stem if source else 'model'}-{kind}")

    @property
    def training_folder(self) -> Path:
        """Where a pass that trains keeps what an interrupted build goes on from."""
        return self.folder.with_name(f"{self.folder.name}.training")

    @property
    def timed(self) -> bool:
        """Whether times are measured: they are asked for, or a goal needs them."""
        return self.bench or self.min_speedup > 0.0

    @property
    def recipe(self) -> dict[str, Any]:
        """What decides the files of the artifact, as plain data: paths and texts, None for an object."""
        texts = {
            "passes": str(self.pipeline),
            "target": ",".join(map(str, self.targets)),
            "allow": sorted(self.allow),
            "metric": self._metric_text,
        }
        values = {field.name: getattr(self, field.name) for field in deciding()}
        paths = {field.name: path_text(values[field.name]) for field in deciding() if kind(field) is Path}
        return {**values, **paths, **texts}

    @property
    def _metric_text(self) -> str | None:
        """The metric as a user types it, None for a function that no file has by its name."""
        if isinstance(self.metric, str) or self.scored_by is None:
            return self.metric if isinstance(self.metric, str) else None
        named = isinstance(self.metric, Metric) or self.scored_by.files_read
        return str(self.scored_by) if named else None

    def check(self) -> None:
        """Refuse what can be refused before any file is read.

        Raises:
            UsageError: no model; an unknown pass, target or metric; a request that contradicts itself.
            GraphCompressError: as :meth:`Target.check`.
        """
        if self.model is None:
            raise UsageError("no model is given; name an ONNX file, or a recipe that names one with --recipe")
        check_max_length(self.max_length)
        calibrated = self.data is not None or self.train is not None
        for target in self.targets:
            target.check()
            self.pipeline.check_target(target.name, target.capabilities, calibrated=calibrated)
        self.pipeline.check_given(calibrated=calibrated)
        common_capabilities(self.targets)
        for name in self.allow:
            PASSES.find(name)
        self.pipeline.check_request(self.allow, self.require_coverage)
        self._check_metric()
        self._check_goals()
        self._check_training()
        self._check_inputs_stay()

    def _check_inputs_stay(self) -> None:
        """Refuse to replace a folder that holds what the build reads."""
        folder = os.path.realpath(self.folder)
        for name, path in self.recipe.items():
            if _FIELDS[name] is Path and path and os.path.realpath(path).startswith(f"{folder}{os.sep}"):
                raise UsageError(
                    f"{path} ({name}) lies in {self.folder}, which would be replaced; "
                    "choose another folder with -o"
                )

    def _check_metric(self) -> None:
        if self.metric is None and self.eval_data is not None:
            raise UsageError("--eval-data is read by a metric only; name one with --metric")
        if self.scored_by is None:
            return
        if self.eval_data is None and self.data is None and self.train is None:
            raise UsageError(
                f"metric {str(self.scored_by)!r} needs samples; give them with --eval-data or --data"
            )

    @cached_property
    def allowed_drop(self) -> MaxDrop | None:
        """What the metric may lose, or None.

        Raises:
            UsageError: it does not read.
        """
        if self.max_drop is None:
            return None
        return MaxDrop.parse(self.max_drop, self.confidence)

    def _check_goals(self) -> None:
        if self.allowed_drop is not None and self.metric is None:
            raise UsageError("--max-drop bounds a metric; name one with --metric")
        if self.confidence and self.allowed_drop is None:
            raise UsageError("--confidence says how sure --max-drop has to hold; give both")
        if self.max_size is not None:
            parse_size(self.max_size, "--max-size")
        if self.min_speedup < 0.0:
            raise UsageError(f"--min-speedup {self.min_speedup:g}: give a number above 0, such as 2")
        untimed = [target.name for target in self.targets if not target.timed]
        if self.min_speedup and untimed:
            raise UsageError(
                f"--min-speedup cannot be checked for {', '.join(untimed)}: this machine is not what runs it"
            )

    def _check_training(self) -> None:
        if self.pipeline.trains and self.train is None:
            raise UsageError(f"{self.pipeline} trains; give samples to train on with --train")
        if not self.pipeline.trains and (self.train is not None or self.teacher is not None):
            raise UsageError(
                f"--train and --teacher are read by a pass that trains, {self.pipeline} has none: distill"
            )


def kind(field: dataclasses.Field[Any]) -> type:
    """What a user types for a field of :class:`Request`: a Path, a text, or a value like its default."""
    # Annotations are texts in this module.
    if "Path" in field.type:
        return Path
    if field.default is dataclasses.MISSING:
        return dict
    unset = int if field.type.startswith("int ") else str
    return unset if field.default is None else type(field.default)


def explained(field: dataclasses.Field[Any]) -> str:
    """The help of a field of :class:`Request`, with what happens without a value."""
    unset = field.metadata["unset"]
    return f"{field.metadata['help']} Default: {unset}." if unset else str(field.metadata["help"])


def deciding() -> list[dataclasses.Field[Any]]:
    """The fields that decide the files of the artifact, in the order of a recipe."""
    return [field for field in dataclasses.fields(Request) if field.metadata["decides"]]


def path_text(given: object) -> str | None:
    """A path as it was given, with forward slashes; None for anything that is not a path."""
    return Path(given).as_posix() if isinstance(given, (str, Path)) else None


_WORDS: dict[type, str] = {
    Path: "a path",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    tuple: "a list of texts",
    dict: "a table of texts",
}


_FIELDS = {field.name: kind(field) for field in dataclasses.fields(Request)}


def _fits(field: dataclasses.Field[Any], value: object) -> bool:
    """Whether ``value`` is of the kind of its field; objects are judged where they are used."""
    wanted = kind(field)
    # No isinstance: to Python True is a number.
    if wanted in (int, bool):
        return type(value) is wanted
    if wanted is float:
        return type(value) in (int, float)
    if wanted is tuple:
        return _are_texts(value)
    if wanted is dict:
        return isinstance(value, Mapping) and _are_texts([*value, *value.values()])
    if isinstance(value, (list, tuple)):
        return all(isinstance(item, (Pass, Target)) for item in value)
    return value is not None and not isinstance(value, (int, float, bytes, dict))


def _are_texts(value: object) -> bool:
    if isinstance(value, str) or not isinstance(value, Collection):
        return False
    return all(isinstance(item, str) for item in value)
