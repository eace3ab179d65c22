"""``graphcompress bench``: how fast models and artifacts are, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from graphcompress.commands.terminal import (
    Data,
    Json,
    Seed,
    Tokenizer,
    origin,
    out,
    print_json,
    progress_bars,
    samples_for,
)

if TYPE_CHECKING:
    from graphcompress.base import Progress
    from graphcompress.bench import ShapeResult
    from graphcompress.data.samples import Samples
    from graphcompress.roofline import Roofline


def bench(
    models: Annotated[
        list[Path], typer.Argument(help="ONNX files or artifacts; ratios are against the first.")
    ],
    data: Data = None,
    tokenizer: Tokenizer = None,
    shapes: Annotated[
        str,
        typer.Option(
            help="<batch>x<length>, comma-separated; 'natural' is the median length of the samples."
        ),
    ] = "1xnatural,1x128,8x128",
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

    Example: graphcompress bench model.onnx small --data sentences.jsonl --shapes 1x128,8x128
    """
    from dataclasses import asdict

    from graphcompress.artifact.manifest import bench_json, rounded
    from graphcompress.artifact.opening import described, session
    from graphcompress.bench import bench as measure
    from graphcompress.report import bench_lines
    from graphcompress.roofline import roofline_line

    with progress_bars() as progress:
        first = described(models[0])
        samples = samples_for(first, data, tokenizer or _tokenizer_beside(models), seed)
        names = _names(models)
        contenders = {}
        for number, (name, path) in enumerate(zip(names, models, strict=True)):
            progress("load", number, len(models))
            contenders[name] = session(path)
        progress("load", len(models), len(models))
        results = measure(contenders, samples, shapes=shapes.split(","), rounds=rounds, progress=progress)
        found = (
            _rooflines(dict(zip(names, models, strict=True)), samples, results, progress) if roofline else {}
        )
    if json:
        document = {
            "models": dict(zip(names, map(str, models), strict=True)),
            "shapes": bench_json(results),
            "roofline": rounded(
                {name: {**asdict(item), "share": item.share} for name, item in found.items()}
            ),
        }
        print_json(document)
        return
    console = out()
    for shape, text in bench_lines(results):
        console.print(f"{shape}: {text}")
    for name, item in found.items():
        console.print(f"roofline, {roofline_line(name, results[-1].shape, item)}")
    console.print(f"lengths from {origin(samples)}; brackets: 10th to 90th percentile of {rounds} rounds")


def _rooflines(
    models: dict[str, Path], samples: Samples, results: list[ShapeResult], progress: Progress
) -> dict[str, Roofline]:
    """The roofline of every model at the last shape; nothing for a shape that was not measured."""
    from graphcompress.artifact.opening import model_file
    from graphcompress.bench import shaped_feed
    from graphcompress.roofline import roofline

    if results[-1].skipped:
        return {}
    batch, length = results[-1].size
    feed, _ = shaped_feed(samples, f"{batch}x{length}")
    found = {}
    for number, (name, path) in enumerate(models.items()):
        progress("roofline", number, len(models))
        file = model_file(path)
        item = None if file.suffix == ".ort" else roofline(file, feed, batch=batch, length=length)
        if item is not None:
            found[name] = item
    progress("roofline", len(models), len(models))
    return found


def _names(models: list[Path]) -> list[str]:
    """Short names; where two are alike, the whole path with a number."""
    short = [path.name for path in models]
    if len(set(short)) == len(short):
        return short
    return [f"{number}:{path}" for number, path in enumerate(models, 1)]


def _tokenizer_beside(models: list[Path]) -> Path | None:
    """A tokenizer beside any of the models."""
    folders = [path if path.is_dir() else path.parent for path in models]
    return next((folder for folder in folders if (folder / "tokenizer.json").is_file()), None)
