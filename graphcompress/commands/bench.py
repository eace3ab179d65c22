"""``graphcompress bench``: how fast models and artifacts are, side by side."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure speed: models take turns, each alone while it runs; ratios with their 10th to 90th percentile.

    Example: graphcompress bench model.onnx small --data sentences.jsonl --shapes 1x128,8x128
    """
    from graphcompress.artifact.manifest import bench_json
    from graphcompress.artifact.opening import model_file, session
    from graphcompress.bench import bench as measure
    from graphcompress.model import Model
    from graphcompress.report import bench_lines

    with progress_bars() as progress:
        first = Model.load(model_file(models[0]))
        samples = samples_for(first, data, tokenizer or _tokenizer_beside(models), seed)
        names = _names(models)
        contenders = {}
        for number, (name, path) in enumerate(zip(names, models, strict=True)):
            progress("load", number, len(models))
            contenders[name] = session(path)
        progress("load", len(models), len(models))
        results = measure(contenders, samples, shapes=shapes.split(","), rounds=rounds, progress=progress)
    if json:
        print_json({"models": dict(zip(names, map(str, models), strict=True)), "shapes": bench_json(results)})
        return
    console = out()
    for shape, text in bench_lines(results):
        console.print(f"{shape}: {text}")
    console.print(f"lengths from {origin(samples)}; brackets: 10th to 90th percentile of {rounds} rounds")


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
