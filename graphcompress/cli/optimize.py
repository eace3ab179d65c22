"""``graphcompress optimize``: the main job."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from graphcompress.cli.terminal import Data, Json, Tokenizer, out, print_json, progress_bars

if TYPE_CHECKING:
    from collections.abc import Callable

    from graphcompress.build.optimize import Build
    from graphcompress.build.recipe import Recipe
    from graphcompress.measure.bench import ShapeResult
    from graphcompress.pipeline.pipeline import PassRecord
    from graphcompress.plugin.base import Progress

BENCH_SECONDS = 10.0
"""At each shape."""

DEFAULT_PASSES = "simplify,int8"


def optimize(
    model: Annotated[
        Path | None, typer.Argument(help="ONNX file or Hugging Face folder; may be left out with --recipe.")
    ] = None,
    passes: Annotated[
        str | None,
        typer.Option(
            help="Passes in order, such as 'kron{rank=2},prune,int8'; simplify runs first by itself.",
            show_default=DEFAULT_PASSES,
        ),
    ] = None,
    target: Annotated[
        str | None,
        typer.Option(
            help="Runtime to lower for; several, such as cpu,mobile, share the work.", show_default="cpu"
        ),
    ] = None,
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
    data: Data = None,
    tokenizer: Tokenizer = None,
    metric: Annotated[
        str | None,
        typer.Option(
            help="Task metric, before and after: similarity, spearman, accuracy, agreement.",
            show_default="none",
        ),
    ] = None,
    eval_data: Annotated[
        Path | None, typer.Option(help="Samples for the metric.", show_default="those of --data")
    ] = None,
    train: Annotated[
        Path | None,
        typer.Option(help="Samples that a pass such as distill learns from.", show_default="none"),
    ] = None,
    teacher: Annotated[
        Path | None,
        typer.Option(
            help="ONNX file or Hugging Face folder whose answers are learned.",
            show_default="the model as it came in",
        ),
    ] = None,
    task: Annotated[
        str | None,
        typer.Option(
            help="What a checkpoint is exported for, as in graphcompress export.",
            show_default="as the checkpoint says",
        ),
    ] = None,
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Folder of the artifact.", show_default="<model>-<target>"),
    ] = None,
    seed: Annotated[int | None, typer.Option(help="For everything random.", show_default="0")] = None,
    require_coverage: Annotated[
        float | None,
        typer.Option(
            help="Fail when a lossy pass touches a smaller share (0-1) of the parameters.", show_default="0"
        ),
    ] = None,
    allow: Annotated[
        list[str] | None,
        typer.Option(help="Accept a broken contract of this pass; may be repeated.", show_default="none"),
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option(help="TOML file that says the same as these options; options given here win."),
    ] = None,
    report: Annotated[Path | None, typer.Option(help="Also write a report with times, .md or .html.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace an existing artifact.")] = False,
    bench: Annotated[
        bool, typer.Option("--bench/--no-bench", help="Measure latency before and after.")
    ] = True,
    json: Json = False,
) -> None:
    """Compress a model: run passes, lower it for each target, verify the artifacts, write them.

    Example: graphcompress optimize model.onnx --passes kron,prune,int8 --data sentences.jsonl -o small
    """
    from graphcompress.build.recipe import Recipe, read_recipe
    from graphcompress.build.report_file import check_report_path, write_report
    from graphcompress.cli.short import with_options
    from graphcompress.training.processes import rank

    if report is not None:
        check_report_path(report)
    base = read_recipe(recipe) if recipe else Recipe()
    given = {
        "model": model,
        "passes": passes,
        "target": with_options(
            target or base.target,
            override=target is None,
            shapes=shapes,
            profile=profile.as_posix() if profile else None,
        ),
        "data": data,
        "tokenizer": tokenizer,
        "metric": metric,
        "eval_data": eval_data,
        "train": train,
        "teacher": teacher,
        "task": task,
        "seed": seed,
        "require_coverage": require_coverage,
        "allow": tuple(allow) if allow else None,
    }
    wanted = _merged(base, given)
    console = out()
    with progress_bars() as progress:
        build = _run(
            wanted, output, overwrite, progress, lambda record: None if json else _print_record(record)
        )
        if rank() > 0:
            return
        benched = _bench(wanted, build, progress) if bench else []
    if report is not None:
        write_report(report, build, benched)
    if json:
        print_json(_document(build, benched))
        return
    _print_summary(build, benched)
    console.print(f"written to {build.output}" + (f", report in {report}" if report else ""))


def _merged(base: Recipe, given: dict[str, Any]) -> Recipe:
    """The recipe with the options of the command line on top; hashes are kept for inputs that stayed."""
    from dataclasses import replace

    from graphcompress.errors import UsageError

    changes: dict[str, Any] = {
        key: value.as_posix() if isinstance(value, Path) else value
        for key, value in given.items()
        if value is not None
    }
    merged = replace(base, **changes)
    merged = replace(merged, sha256=_kept_hashes(base, merged))
    if merged.model is None:
        raise UsageError("no model is given; name an ONNX file, or a recipe that names one with --recipe")
    return merged


def _kept_hashes(base: Recipe, merged: Recipe) -> dict[str, str]:
    """Hashes of ``base`` that still hold for ``merged``; what lies beside a model goes with that model."""
    before, after = ({Path(path).as_posix() for path in it.files if path} for it in (base, merged))
    if merged.model != base.model:
        return {path: digest for path, digest in base.sha256.items() if path in after}
    return {path: digest for path, digest in base.sha256.items() if path not in before - after}


def _run(
    wanted: Recipe,
    output: Path | None,
    overwrite: bool,
    progress: Progress,
    on_record: Callable[[PassRecord], None],
) -> Build:
    from graphcompress.build.optimize import optimize as build

    wanted.check_inputs()
    return build(
        wanted.model or "",
        DEFAULT_PASSES if wanted.passes is None else wanted.passes,
        target=wanted.target,
        data=wanted.data,
        tokenizer=wanted.tokenizer,
        metric=wanted.metric,
        eval_data=wanted.eval_data,
        train=wanted.train,
        teacher=wanted.teacher,
        task=wanted.task,
        output=output,
        seed=wanted.seed,
        allow=wanted.allow,
        require_coverage=wanted.require_coverage,
        overwrite=overwrite,
        progress=progress,
        on_record=on_record,
    )


def _bench(wanted: Recipe, build: Build, progress: Progress) -> list[ShapeResult]:
    from graphcompress.build.opening import session
    from graphcompress.measure.bench import bench

    read = build.model.path if build.model else None
    timed = [lowered for lowered in build.lowered if lowered.timed]
    if not timed:
        return []
    contenders = {"before": session(read or wanted.model or "")}
    for lowered in timed:
        contenders["after" if len(build.lowered) == 1 else lowered.name] = session(lowered.folder)
    return bench(contenders, build.samples, seconds=BENCH_SECONDS, progress=progress)


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
    from graphcompress.build.manifest import bench_json, rounded

    artifacts = {
        lowered.name: {
            **read_manifest(lowered.folder),
            "lowering": rounded(lowered.record),
            "output": str(lowered.folder),
        }
        for lowered in build.lowered
    }
    latency = {"latency": bench_json(benched)}
    if len(artifacts) == 1:
        return {**artifacts[build.lowered[0].name], **latency}
    return {"artifacts": artifacts, "output": str(build.output), **latency}
