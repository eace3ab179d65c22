"""``graphcompress optimize``: the main job."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import inspect
import shlex
import sys
import typing
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.text import Text

from graphcompress.build.request import MODEL, OUTPUT, Request, deciding, kind
from graphcompress.cli.terminal import Json, as_option, err, field_of, out, print_json, progress_bars
from graphcompress.reporting.wrapping import WIDTH, wrapped

if TYPE_CHECKING:
    from graphcompress.build.result import Artifact, Build
    from graphcompress.measure.bench import ShapeResult
    from graphcompress.pipeline.pipeline import PassRecord


def _with_request(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command, before its own, an option for every field of :class:`Request` that can be typed."""
    # Annotations are texts in this module, and typer reads objects.
    hints = typing.get_type_hints(command, include_extras=True)
    own = inspect.signature(command).parameters.values()
    given = [_parameter(field) for field in dataclasses.fields(Request) if _is_typed(field)]
    kept = [one.replace(annotation=hints[one.name]) for one in own if one.kind is not one.VAR_KEYWORD]

    @functools.wraps(command)
    def called(**values: object) -> None:
        command(**values)

    shown = inspect.Signature([*given, *kept])
    setattr(called, "__signature__", shown)  # noqa: B010 - no attribute that types know of
    called.__annotations__ = {one.name: one.annotation for one in shown.parameters.values()}
    return called


def _is_typed(field: dataclasses.Field[Any]) -> bool:
    return field.metadata["typed"] and kind(field) in _TYPED


_TYPED: dict[type, type] = {Path: Path, str: str, int: int, float: float, tuple: list[str], bool: bool}
"""Kind of a field → how the command line reads it; what is not here cannot be typed."""


def _parameter(field: dataclasses.Field[Any]) -> inspect.Parameter:
    info: object = as_option(field.name)
    if field.name == "model":
        info = typer.Argument(help=field.metadata["help"], show_default=field.metadata["unset"])
    switch = kind(field) is bool
    # None is what was not typed, so that a recipe can say it.
    typed = _TYPED[kind(field)] if switch else _TYPED[kind(field)] | None
    return inspect.Parameter(
        field.name,
        inspect.Parameter.KEYWORD_ONLY,
        default=False if switch else None,
        annotation=Annotated[typed, info],
    )


@_with_request
def optimize(
    *,
    shapes: Annotated[
        str | None,
        typer.Option(
            help="<batch>x<length>, comma-separated, at which the target measures: short for cpu{shapes=…}.",
            rich_help_panel=MODEL,
            show_default="those of the target",
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="Build for the machine on which graphcompress tune wrote this: short for cpu{profile=…}.",
            rich_help_panel=MODEL,
            show_default="none",
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(
            help="TOML file that says the same as these options; options given here win.",
            rich_help_panel=MODEL,
        ),
    ] = None,
    report: Annotated[
        Path | None,
        typer.Option(help="Also write the report there, .md or .html.", rich_help_panel=OUTPUT),
    ] = None,
    bench: Annotated[
        bool,
        typer.Option("--bench/--no-bench", help=field_of("bench").metadata["help"], rich_help_panel=OUTPUT),
    ] = True,
    verbose: Annotated[
        bool,
        typer.Option("--verbose", "-v", help="Print all that the report says, too.", rich_help_panel=OUTPUT),
    ] = False,
    json: Json = False,
    **given: Any,  # noqa: ANN401 - a field of Request each
) -> None:
    """Compress a model: run passes, lower it for each target, verify the artifacts, write them.

    Example: graphcompress optimize model.onnx --passes prune,int8 --data sentences.jsonl -o small
    """
    from graphcompress.build.optimize import optimize as build_for
    from graphcompress.build.recipe import read_recipe
    from graphcompress.build.report_file import check_report_path, write_report
    from graphcompress.cli.short import with_options
    from graphcompress.training.processes import rank

    if report is not None:
        check_report_path(report, overwrite=given["overwrite"])
    base = read_recipe(recipe) if recipe else {}
    target = given["target"]
    given["target"] = with_options(
        target or base.get("target", Request.target),
        override=target is None,
        shapes=shapes,
        profile=profile.as_posix() if profile else None,
    )
    request = Request(**with_changes(base, given), bench=bench)
    done: list[PassRecord] = []
    with (
        progress_bars(_stages(request)) as progress,
        _told_when_stopped(request),
        _passes_told_when_failed(done, quiet=json),
    ):
        _say_resumed(request)
        progress(OPENING, 0, 1)
        build = build_for(dataclasses.replace(request, progress=progress, on_record=done.append))
        # The other processes of a training have no artifact.
        if rank() > 0:
            return
    if report is not None:
        write_report(report, build)
    benched = list(build.benched)
    if json:
        print_json(_document(build, benched))
        return
    _print_result(build, benched)
    if verbose:
        _print_all(build, benched)
    if report is not None:
        out().print(f"report in {report}")


INTERRUPTED = 130
"""Exit code of a run that the user interrupted."""

OPENING = "read and run the model"
"""The first step of a run."""


def _stages(request: Request) -> list[str]:
    """The steps of a run, by the texts that progress is reported under."""
    from graphcompress.build.measuring import MEASURING

    lowering = [f"lower for {target.name}" for target in request.targets]
    return [OPENING, *map(str, request.pipeline.passes), *lowering, *([MEASURING] if request.timed else [])]


def _say_resumed(request: Request) -> None:
    """Say at the start when an interrupted training goes on."""
    from graphcompress.training.checkpoint_folder import has_checkpoints

    folder = request.training_folder
    if request.pipeline.trains and has_checkpoints(folder):
        err().print(f"goes on from the training in {folder}; to start over, delete that folder")


@contextlib.contextmanager
def _passes_told_when_failed(done: Sequence[PassRecord], *, quiet: bool) -> Iterator[None]:
    """Print a line for each pass that was ``done`` when a later step fails."""
    from graphcompress.errors import GraphCompressError
    from graphcompress.reporting.summary import pass_line

    try:
        yield
    except GraphCompressError:
        # The size of what came in is not known here: the first pass is compared with itself, so that its line
        # says no size.
        for before, record in zip([*done[:1], *done], done, strict=False):
            if not quiet:
                _print_wrapped(pass_line(record, before.size))
        raise


@contextlib.contextmanager
def _told_when_stopped(request: Request) -> Iterator[None]:
    """Note on an interruption what is kept, and which command goes on."""
    from graphcompress.training.checkpoint_folder import has_checkpoints

    try:
        yield
    except (KeyboardInterrupt, SystemExit) as stopped:
        # Typer would catch a KeyboardInterrupt, and lose its notes.
        leave = stopped if isinstance(stopped, SystemExit) else SystemExit(INTERRUPTED)
        command = shlex.join(["graphcompress", *sys.argv[1:]])
        if request.pipeline.trains and has_checkpoints(request.training_folder):
            leave.add_note(f"what was learned is kept in {request.training_folder}; go on with: {command}")
        else:
            leave.add_note(f"no artifact was written; start again with: {command}")
        raise leave from None


def with_changes(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with the options of the command line on top.

    Hashes are kept for inputs that stayed, what was measured and chosen where everything that decides did.
    """
    changes = {
        # As a recipe writes paths, on every system.
        name: value.as_posix() if isinstance(value, Path) else value
        for name, value in given.items()
        if value is not None
    }
    merged = {**base, **changes}
    stays = all(merged.get(field.name) == base.get(field.name) for field in deciding())
    return {
        **merged,
        "sha256": _kept_hashes(base, merged),
        "pinned": base.get("pinned", {}) if stays else {},
    }


def _kept_hashes(base: Mapping[str, Any], merged: Mapping[str, Any]) -> dict[str, str]:
    """Hashes of ``base`` that still hold for ``merged``; what lies beside a model goes with that model."""
    before, after = _files(base), _files(merged)
    hashes = base.get("sha256", {})
    if merged.get("model") != base.get("model"):
        return {path: digest for path, digest in hashes.items() if path in after}
    return {path: digest for path, digest in hashes.items() if path not in before - after}


def _files(recipe: Mapping[str, Any]) -> set[str]:
    """Paths that a recipe names."""
    from graphcompress.plugin.task import own_metric

    paths = [recipe.get(field.name) for field in deciding() if kind(field) is Path]
    paths.append(own_metric(recipe.get("metric") or "")[0])
    return {Path(path).as_posix() for path in paths if path}


def _print_result(build: Build, benched: list[ShapeResult]) -> None:
    """The box of every artifact, then one line per pass."""
    from graphcompress.reporting.summary import pass_lines

    for artifact in build.lowered:
        _print_box(build, artifact, benched)
    for line in pass_lines(build):
        _print_wrapped(line)


def _print_box(build: Build, artifact: Artifact, benched: list[ShapeResult]) -> None:
    """The result between two rules; without a frame at its sides, so that its Python can be copied."""
    from rich.rule import Rule

    from graphcompress.reporting.loading import loading_lines
    from graphcompress.reporting.summary import result_lines, title

    console = out()
    width = min(console.width, WIDTH)
    lines = result_lines(build, artifact, benched)
    indent = max(len(topic) for topic, _ in lines) + 2
    told = [wrapped(f"{topic:<{indent}}{text}", width, " " * indent) for topic, text in lines]
    console.print(Rule(Text(title(build, artifact)), style=""), width=width)
    console.print("\n".join([*told, "", *loading_lines(artifact, width)]))
    console.print(Rule(style=""), width=width)


def _print_wrapped(text: str, indent: str = "    ") -> None:
    console = out()
    console.print(wrapped(text, min(console.width, WIDTH), indent))


def _print_all(build: Build, benched: list[ShapeResult]) -> None:
    """What the report says: of every pass, of every artifact, of every shape."""
    from graphcompress.reporting.text import (
        bench_lines,
        detail_lines,
        pass_line,
        summary_lines,
        target_lines,
        target_table,
    )

    for record in build.records:
        _print_wrapped(pass_line(record))
        for line in detail_lines(record):
            _print_wrapped(f"    {line}", "      ")
    if len(build.lowered) == 1:
        lines = summary_lines(build)
    else:
        _print_table(target_table(build))
        lines = target_lines(build)
    lines += [("latency", f"{shape}: {text}") for shape, text in bench_lines(benched)]
    for topic, text in lines:
        _print_wrapped(f"{topic:<11} {text}", " " * 12)


def _print_table(rows: list[list[str]]) -> None:
    from rich.table import Table

    table = Table(box=None, padding=(0, 2, 0, 0))
    for title in rows[0]:
        table.add_column(title)
    for row in rows[1:]:
        table.add_row(*row)
    out().print(table, soft_wrap=False)


def _document(build: Build, benched: list[ShapeResult]) -> dict[str, Any]:
    """The manifest, or those of all targets by name, with what was measured on this machine."""
    from graphcompress.artifact.folder import read_manifest
    from graphcompress.build.manifest import bench_json, plain

    artifacts = {
        lowered.name: {
            **read_manifest(lowered.folder),
            "lowering": plain(lowered.record),
            "output": str(lowered.folder),
        }
        for lowered in build.lowered
    }
    latency = {"latency": bench_json(benched)}
    if len(artifacts) == 1:
        return {**artifacts[build.lowered[0].name], **latency}
    return {"artifacts": artifacts, "output": str(build.output), **latency}
