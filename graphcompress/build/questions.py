"""What Python asks of models and artifacts, answered by dataclasses: inspect, bench, verify, report."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from graphcompress.artifact.folder import PAGE, REPORT, check_hashes
from graphcompress.artifact.opening import (
    described,
    described_parts,
    input_names,
    is_artifact,
    is_timed_here,
    manifest_of_one,
    model_file,
    session,
)
from graphcompress.build.manifest import bench_json
from graphcompress.build.opened_writers import texts_to_read, writer_at
from graphcompress.capturing.source import open_model
from graphcompress.data.load import Samples, load_samples
from graphcompress.data.made_up import synthetic_samples, varied_samples
from graphcompress.errors import MissingExtraError, UsageError
from graphcompress.files.scratch import on_disk
from graphcompress.graph.agreements import agree_on_length, agreed_length, left_out
from graphcompress.graph.model import Model
from graphcompress.graph.teacher_forced import writer_of
from graphcompress.measure import bench as timing
from graphcompress.measure.bench import SHAPES, ShapeResult
from graphcompress.measure.invariance import Invariance, batch_invariance
from graphcompress.measure.own_cache import Continuity, OwnCache, verified_caches
from graphcompress.measure.timing import BENCH_ROUNDS
from graphcompress.measure.tokens import token_values
from graphcompress.measure.verify import Difference, compare
from graphcompress.pipeline import inspection
from graphcompress.pipeline.inspection import Inspection
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context, Progress, no_progress
from graphcompress.plugin.targeting import common_capabilities, parse_targets
from graphcompress.reporting.text import (
    bench_lines,
    continuity_line,
    difference_line,
    invariance_line,
    own_cache_line,
)

if TYPE_CHECKING:
    import pandas as pd

_LOG = logging.getLogger(__name__)

VERIFY_ROWS, VERIFY_BATCH, MADE_UP = 64, 8, 16
"""Rows that two models are compared on, how many of them run together, and how many are made up."""


@dataclass(frozen=True)
class Verification:
    """How far the outputs of B are from those of A, and whether answers of either depend on batch mates.

    Of models that write also how far B is from A when each reads its own cache, and for each of them whether
    steps with a cache say what one pass over the same tokens says; None of other models.
    """

    difference: Difference
    invariance_a: Invariance
    invariance_b: Invariance
    own_cache: OwnCache | None = None
    continuity_a: Continuity | None = None
    continuity_b: Continuity | None = None

    def __str__(self) -> str:
        parts = [
            difference_line(self.difference),
            *map(invariance_line, (self.invariance_a, self.invariance_b)),
        ]
        parts += [] if self.own_cache is None else [own_cache_line(self.own_cache)]
        parts += [continuity_line(one) for one in (self.continuity_a, self.continuity_b) if one is not None]
        return "\n".join(parts)

    def frame(self) -> pd.DataFrame:
        """One row for each output, where pandas is installed."""
        return _frame([vars(output) for output in self.difference.outputs])


@dataclass(frozen=True)
class Benchmark:
    """Times of models that took turns, at each shape."""

    shapes: tuple[ShapeResult, ...]

    def __str__(self) -> str:
        return "\n".join(f"{shape}: {text}" for shape, text in bench_lines(self.shapes))

    def frame(self) -> pd.DataFrame:
        """One row for each shape and model, where pandas is installed."""
        return _frame(
            [
                {
                    "shape": one["shape"],
                    "model": name,
                    **times,
                    "ratio": one["ratios"].get(name, {}).get("median"),
                }
                for one in bench_json(self.shapes)
                for name, times in one["times_ms"].items()
            ]
        )


@dataclass(frozen=True)
class Report:
    """The report of an artifact: its manifest, the text and the page; a notebook shows the page."""

    manifest: Mapping[str, Any]
    text: str
    html: str

    def __str__(self) -> str:
        return self.text

    def frame(self) -> pd.DataFrame:
        """One row for each pass, where pandas is installed."""
        return _frame(
            [
                {
                    "pass": one["text"],
                    "touched": len(one["touched"]),
                    "left_alone": len(one["skipped"]),
                    **one["size"],
                    "sqnr_db": one["total"]["sqnr_db"],
                    "metric": (one["score"] or {}).get("value"),
                }
                for one in self.manifest["passes"]
            ]
        )

    def _repr_html_(self) -> str:
        return framed(self.html)


def inspect(
    model: Model | str | Path,
    passes: str | None = None,
    *,
    target: str = "cpu",
    data: Samples | str | Path | None = None,
    tokenizer: str | Path | None = None,
    max_length: int | None = None,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Inspection:
    """What is in a model, and what each of ``passes`` (by default of all installed ones) could do to a copy.

    Raises:
        GraphCompressError: a model, a pass or data that cannot be read.
    """
    steps = None if passes is None else () if passes == "none" else Pipeline.parse(passes).passes
    opened = model if isinstance(model, Model) else open_model(model_file(model))
    samples = _samples(data, opened, tokenizer, max_length) if data is not None else None
    ctx = Context(samples, common_capabilities(parse_targets(target)), seed, progress)
    return inspection.inspect(opened, steps, ctx=ctx, progress=progress)


def bench(
    models: Mapping[str, str | Path] | Sequence[str | Path],
    *,
    data: Samples | str | Path | None = None,
    tokenizer: str | Path | None = None,
    max_length: int | None = None,
    shapes: Sequence[str] = SHAPES,
    rounds: int = BENCH_ROUNDS,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Benchmark:
    """Time models and artifacts, which take turns; ratios are against the first.

    Raises:
        GraphCompressError: a model or data that cannot be read, an artifact that another machine runs, or a
            shape that does not read.
    """
    named = models if isinstance(models, Mapping) else {str(path): path for path in models}
    if not named:
        raise UsageError("no models are given; name at least one")
    untimed = [str(path) for path in named.values() if not is_timed_here(path)]
    if untimed:
        raise UsageError(
            f"{', '.join(untimed)}: cannot be timed, this machine is not what runs it; leave it out"
        )
    first = described(next(iter(named.values())))
    samples = (
        synthetic_samples(first, count=MADE_UP, seed=seed)
        if data is None
        else _samples(data, first, tokenizer, max_length)
    )
    contenders = {name: session(path) for name, path in named.items()}
    found = timing.bench(contenders, samples, shapes=shapes, rounds=rounds, progress=progress)
    return Benchmark(tuple(found))


def verify(
    a: str | Path,
    b: str | Path,
    *,
    data: Samples | str | Path | None = None,
    tokenizer: str | Path | None = None,
    max_length: int | None = None,
    limit: int = VERIFY_ROWS,
    seed: int = 0,
    progress: Progress = no_progress,
) -> Verification:
    """Compare the outputs of ``b`` with those of ``a``, and each model alone with itself in a padded batch.

    Raises:
        UsageError: they take different inputs, or ``a`` is made for another runtime.
        ContractError: the files of an artifact are not as they were built.
    """
    a, b = Path(a), Path(b)
    progress("verify", 0, 3)
    for path in filter(is_artifact, (a, b)):
        check_hashes(path)
    refuse_other_inputs(a, b)
    model = described(a)
    if not len(model.graph):
        raise UsageError(f"{a} is no ONNX file, so nothing is known of it; name what it was made from first")
    # An artifact says in its file how long inputs are, and which outputs of what came in nobody asked for.
    parts = described_parts(b)
    gone = {prefix + name for prefix, part in parts.items() for name in left_out(part)}
    for longest in filter(None, map(agreed_length, parts.values())):
        agree_on_length(model, longest)
    by_token = token_values(Model.load(model_file(a)))
    given = (
        varied_samples(model, count=MADE_UP, seed=seed)
        if data is None
        else _samples(data, model, tokenizer, max_length, limit)
    )
    # Of a file so many rows are read, of which there may be more samples: windows of long texts.
    samples = given if isinstance(data, (str, Path)) else given.first(limit)
    feeds = on_disk(samples.batches(VERIFY_BATCH))
    runs = [session(path) for path in (a, b)]
    reference = on_disk(
        {name: array for name, array in runs[0](feed).items() if name not in gone} for feed in feeds
    )
    difference = compare(reference, runs[1], feeds, by_token, samples=samples)
    invariances = []
    for number, run in enumerate(runs, 1):
        progress("verify", number, 3)
        invariances.append(batch_invariance(run, samples))
    progress("verify", 3, 3)
    caches = _caches(model, a, b, samples) or (None, None, None)
    return Verification(difference, invariances[0], invariances[1], *caches)


def _caches(
    model: Model, a: Path, b: Path, samples: Samples
) -> tuple[OwnCache, Continuity, Continuity] | None:
    """What ``a`` and ``b`` say with their own caches; None where they do not write or no text is known."""
    writers = [writer_at(path) for path in (a, b)] if writer_of(model.parts) else []
    if not writers or writers[0] is None or writers[1] is None:
        return None
    texts = texts_to_read(model, samples)
    return None if texts is None else verified_caches(writers[0], writers[1], texts)


def refuse_other_inputs(a: Path, b: Path) -> None:
    """Raise where ``b`` cannot be fed like ``a``.

    Raises:
        UsageError: their inputs differ.
    """
    takes = [input_names(path) for path in (a, b)]
    if takes[0] != takes[1]:
        first, second = (", ".join(names) for names in takes)
        raise UsageError(
            f"{a} takes {first}, {b} takes {second}: they are not two forms of one model; "
            "give one and what was made of it"
        )


def report(artifact: str | Path) -> Report:
    """The report of the artifact in a folder.

    Raises:
        UsageError: it is none, holds those of several targets, or has lost its report.
    """
    folder = Path(artifact)
    manifest = manifest_of_one(folder)
    try:
        text, page = ((folder / name).read_text(encoding="utf-8") for name in (REPORT, PAGE))
    except OSError as error:
        raise UsageError(f"{folder}: this artifact has lost its report; build it again") from error
    return Report(manifest, text, page)


def framed(page: str) -> str:
    """A whole page inside of another one, which keeps their styles apart."""
    from markupsafe import escape

    return f'<iframe srcdoc="{escape(page)}" style="width:100%;height:40rem;border:0"></iframe>'


def _samples(
    given: Samples | str | Path,
    model: Model,
    tokenizer: str | Path | None,
    max_length: int | None,
    limit: int | None = None,
) -> Samples:
    if isinstance(given, Samples):
        return given
    return load_samples(given, model, tokenizer=tokenizer, limit=limit, max_length=max_length)


def _frame(rows: Sequence[Mapping[str, Any]]) -> pd.DataFrame:
    try:
        import pandas as pd
    except ImportError as error:
        raise MissingExtraError("a frame needs pandas, which is not installed: pip install pandas") from error
    return pd.DataFrame(rows)
