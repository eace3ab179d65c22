"""``graphcompress bench``: how fast models and artifacts are, side by side."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphcompress.cli.terminal import (
    Data,
    Json,
    MaxLength,
    Seed,
    Tokenizer,
    origin,
    print_json,
    progress_bars,
    samples_for,
    tell,
)

if TYPE_CHECKING:
    from graphcompress.data.samples import Samples
    from graphcompress.measure.bench import ShapeResult
    from graphcompress.measure.roofline import Roofline
    from graphcompress.plugin.context import Progress

_NO_ROOFLINE = "only ONNX models with products that ran on the CPU provider at the last shape have one"
_INSTEAD = "to time what stands in for it here, name the model's file in it"


def bench(
    models: Annotated[
        list[Path], typer.Argument(help="ONNX files or artifacts; ratios are against the first.")
    ],
    data: Data = None,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    shapes: Annotated[
        str,
        typer.Option(
            help="<batch>x<length>, comma-separated; 'natural' is the median length of the samples."
        ),
    ] = "1xnatural,1x128,8x128",
    generate: Annotated[
        str | None,
        typer.Option(
            help="Time writing instead, at <batch>x<new tokens>, comma-separated, such as 1x32,8x32.",
            show_default=False,
        ),
    ] = None,
    rounds: Annotated[int, typer.Option(min=1, help="Turns of each model at each shape.")] = 20,
    roofline: Annotated[
        bool,
        typer.Option(
            "--roofline/--no-roofline",
            help="Also say, at the last shape, what share of this machine's speed in products is reached.",
        ),
    ] = True,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure speed: models take turns, each alone while it runs; ratios with their 10th to 90th percentile.

    What can be timed is; where something could not be, the exit code is 3.

    Example: graphcompress bench model.onnx small --data sentences.jsonl --shapes 1x128,8x128
    """
    from graphcompress.artifact.opening import described, is_timed_here, session
    from graphcompress.build.manifest import bench_json, plain
    from graphcompress.errors import UsageError
    from graphcompress.measure.bench import bench as measure
    from graphcompress.measure.roofline import roofline_line
    from graphcompress.reporting.text import bench_lines

    if generate is not None:
        if max_length is not None:
            raise UsageError("--max-length: prompts of --generate are read whole; leave it out")
        _writing(models, generate.split(","), data, tokenizer, rounds, seed, json=json)
        return
    with progress_bars() as progress:
        first = described(models[0])
        beside = tokenizer or _tokenizer_beside(models)
        samples = samples_for(first, data, beside, seed, max_length=max_length, timed=True)
        names = dict(zip(_names(models), models, strict=True))
        timed = {name: path for name, path in names.items() if is_timed_here(path)}
        untimed = [name for name in names if name not in timed]
        if not timed:
            raise UsageError(f"{_not_measured(untimed)}; {_INSTEAD}")
        contenders = {}
        for number, (name, path) in enumerate(timed.items()):
            progress("load", number, len(timed))
            contenders[name] = session(path)
        progress("load", len(timed), len(timed))
        results = measure(contenders, samples, shapes=shapes.split(","), rounds=rounds, progress=progress)
        found = _rooflines(timed, samples, results, progress) if roofline else {}
    incomplete = [result.shape for result in results if result.skipped or result.failed] + untimed
    if json:
        document = {
            "models": {name: str(path) for name, path in names.items()},
            "not_measured": untimed,
            "shapes": bench_json(results),
            "roofline": {name: {**plain(item), "share": plain(item.share)} for name, item in found.items()},
        }
        print_json(document)
        _refuse_incomplete(incomplete)
        return
    for shape, text in bench_lines(results):
        tell(f"{shape}: {text}")
    if untimed:
        tell(f"{_not_measured(untimed)}; {_INSTEAD}")
    left_out = [name for name in timed if roofline and name not in found]
    if left_out:
        tell(f"no roofline: {', '.join(left_out)}, {_NO_ROOFLINE}")
    for name, item in found.items():
        tell(f"roofline, {roofline_line(name, results[-1].shape, item)}")
    tell(
        f"lengths from {origin(made_up=samples.synthetic)}; "
        f"brackets: 10th to 90th percentile of {rounds} rounds"
    )
    _refuse_incomplete(incomplete)


def _writing(
    models: list[Path],
    shapes: list[str],
    data: Path | None,
    tokenizer: Path | None,
    rounds: int,
    seed: int,
    *,
    json: bool,
) -> None:
    """Measure how fast models write, and print it."""
    from graphcompress.build.manifest import plain
    from graphcompress.generation.generator import open_generator
    from graphcompress.generation.prompts import prompt_samples
    from graphcompress.measure.writing_speed import bench_writing
    from graphcompress.reporting.text import writing_lines

    names = dict(zip(_names(models), models, strict=True))
    with progress_bars() as progress:
        contenders = {name: open_generator(path, tokenizer=tokenizer) for name, path in names.items()}
        first = next(iter(contenders.values()))
        prompts = prompt_samples(data, first).feeds if data is not None else ()
        results = bench_writing(
            contenders, shapes, prompts=prompts, rounds=rounds, seed=seed, progress=progress
        )
    if json:
        print_json({"models": {name: str(path) for name, path in names.items()}, "generate": plain(results)})
        return
    for shape, text in writing_lines(results):
        tell(f"{shape}: {text}")
    told = "made-up prompts (give real ones with --data)" if data is None else "a prompt of the data file"
    tell(f"{told}; brackets: 10th to 90th percentile of {rounds} rounds")


def _refuse_incomplete(names: Sequence[str]) -> None:
    """End with a code when a shape or a model could not be timed: a build step must not take it for done.

    Raises:
        SpeedError: one could not.
    """
    from graphcompress.errors import SpeedError

    if names:
        raise SpeedError(f"not everything was timed: {', '.join(names)}; what could be is printed above")


def _rooflines(
    models: dict[str, Path], samples: Samples, results: list[ShapeResult], progress: Progress
) -> dict[str, Roofline]:
    """The roofline at the last shape, where that was measured, of every ONNX model on the CPU provider."""
    from graphcompress.artifact.opening import model_file, runs_on_cpu_provider
    from graphcompress.measure.bench import shaped_feed
    from graphcompress.measure.roofline import roofline

    if results[-1].skipped:
        return {}
    batch, length = results[-1].size
    feed, _ = shaped_feed(samples, f"{batch}x{length}")
    found = {}
    for number, (name, path) in enumerate(models.items()):
        progress("roofline", number, len(models))
        if not runs_on_cpu_provider(path):
            continue
        item = roofline(model_file(path), feed, batch=batch, length=length)
        if item is not None:
            found[name] = item
    progress("roofline", len(models), len(models))
    return found


def _not_measured(names: list[str]) -> str:
    return f"not measured: {', '.join(names)}, this machine is not what runs it"


def _names(models: list[Path]) -> list[str]:
    """Short names; where two are alike, the whole path with a number."""
    short = [path.resolve().name for path in models]
    if len(set(short)) == len(short):
        return short
    return [f"{number}:{path}" for number, path in enumerate(models, 1)]


def _tokenizer_beside(models: list[Path]) -> Path | None:
    """A tokenizer beside any of the models."""
    folders = [path if path.is_dir() else path.parent for path in models]
    return next((folder for folder in folders if (folder / "tokenizer.json").is_file()), None)
