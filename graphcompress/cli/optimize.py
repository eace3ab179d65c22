"""``graphcompress optimize``: the main job."""

from __future__ import annotations

import dataclasses
import functools
import inspect
import typing
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphcompress.build.request import Request, deciding, kind
from graphcompress.cli.terminal import Json, as_option, out, print_json, progress_bars

if TYPE_CHECKING:
    from graphcompress.build.result import Build
    from graphcompress.measure.bench import ShapeResult
    from graphcompress.pipeline.pipeline import PassRecord
    from graphcompress.plugin.base import Progress


def _with_request(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for every field of :class:`Request` that a user can type, in front of its own.

    Where one is not given its value is None, so that a recipe can say it.
    """
    hints = typing.get_type_hints(command, include_extras=True)
    own = inspect.signature(command).parameters.values()
    given = [_parameter(field) for field in dataclasses.fields(Request) if kind(field) in _TYPED]
    kept = [one.replace(annotation=hints[one.name]) for one in own if one.kind is not one.VAR_KEYWORD]

    @functools.wraps(command)
    def called(**values: object) -> None:
        command(**values)

    shown = inspect.Signature([*given, *kept])
    setattr(called, "__signature__", shown)  # noqa: B010 - no attribute that types know of
    called.__annotations__ = {one.name: one.annotation for one in shown.parameters.values()}
    return called


_TYPED: dict[type, type] = {Path: Path, str: str, int: int, float: float, tuple: list[str], bool: bool}
"""Kind of a field → how the command line reads it; what is not here cannot be typed."""


def _parameter(field: dataclasses.Field[Any]) -> inspect.Parameter:
    info: object = as_option(field.name)
    if field.name == "model":
        info = typer.Argument(help=field.metadata["help"], show_default=field.metadata["unset"])
    switch = kind(field) is bool
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
            show_default="those of the target",
        ),
    ] = None,
    profile: Annotated[
        Path | None,
        typer.Option(
            help="Build for the machine on which graphcompress tune wrote this: short for cpu{profile=…}.",
            show_default="none",
        ),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="TOML file that says the same as these options; options given here win."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Also write a report with times, .md or .html.")] = None,
    bench: Annotated[
        bool, typer.Option("--bench/--no-bench", help="Measure latency before and after.")
    ] = True,
    json: Json = False,
    **given: Any,  # noqa: ANN401 - a field of Request each
) -> None:
    """Compress a model: run passes, lower it for each target, verify the artifacts, write them.

    Example: graphcompress optimize model.onnx --passes kron,prune,int8 --data sentences.jsonl -o small
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
    with progress_bars() as progress:
        request = Request(
            **with_changes(base, given), progress=progress, on_record=_silent if json else _print_record
        )
        build = build_for(request)
        if rank() > 0:
            return
        benched = _bench(build, progress) if bench else []
    if report is not None:
        write_report(report, build, benched)
    if json:
        print_json(_document(build, benched))
        return
    _print_summary(build, benched)
    out().print(f"written to {build.output}" + (f", report in {report}" if report else ""))


def with_changes(base: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """A recipe with the options of the command line on top.

    Hashes are kept for inputs that stayed, what was measured and chosen where everything that decides did.
    """
    changes = {
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


def _silent(record: PassRecord) -> None:
    """What is printed of a pass where one JSON document is asked for: nothing."""


def _bench(build: Build, progress: Progress) -> list[ShapeResult]:
    from graphcompress.build.opening import session
    from graphcompress.data.made_up import synthetic_samples
    from graphcompress.measure.bench import bench
    from graphcompress.measure.timing import BENCH_SECONDS

    read = build.model.path if build.model else None
    timed = [lowered for lowered in build.lowered if lowered.timed]
    if not timed or not read or build.model is None:
        return []
    contenders = {"before": session(read)}
    for lowered in timed:
        contenders["after" if len(build.lowered) == 1 else lowered.name] = session(lowered.folder)
    samples = synthetic_samples(build.model) if build.samples.synthetic else build.samples
    return bench(contenders, samples, seconds=BENCH_SECONDS, progress=progress)


def _print_record(record: PassRecord) -> None:
    from graphcompress.build.report import detail_lines, pass_line

    console = out()
    console.print(pass_line(record))
    for line in detail_lines(record):
        console.print(f"    {line}")


def _print_summary(build: Build, benched: list[ShapeResult]) -> None:
    from graphcompress.build.report import bench_lines, summary_lines, target_lines, target_table

    console = out()
    if len(build.lowered) == 1:
        for topic, text in summary_lines(build):
            console.print(f"{topic:<11} {text}")
    else:
        _print_table(target_table(build))
        for name, text in target_lines(build):
            console.print(f"{name:<11} {text}")
    for shape, text in bench_lines(benched):
        console.print(f"{'latency':<11} {shape}: {text}")
    untimed = [lowered.name for lowered in build.lowered if not lowered.timed]
    if untimed:
        console.print(
            f"{'latency':<11} not measured for {', '.join(untimed)}: this machine is not what runs it"
        )


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
    from graphcompress.build.folder import read_manifest
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
