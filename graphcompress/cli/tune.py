"""``graphcompress tune``: measurements of this machine, for a build on another."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphcompress.cli.terminal import Data, Json, MaxLength, Seed, Tokenizer, print_json, progress_bars, tell

SIMPLIFY = "simplify"


def tune(
    models: Annotated[list[Path], typer.Argument(help="ONNX files, or models like those to be built.")],
    output: Annotated[Path, typer.Option("--out", "-o", help="The profile, a JSON file.")],
    passes: Annotated[
        str, typer.Option(help="Passes of the builds to come; the model without them is measured too.")
    ] = "simplify,int8",
    shapes: Annotated[
        str | None,
        typer.Option(help="<batch>x<length>, comma-separated.", show_default="those of the target"),
    ] = None,
    target: Annotated[str, typer.Option(help="Target whose choices are measured.")] = "cpu",
    data: Data = None,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Measure operator forms on this machine, so that another machine can build for it.

    Only sizes and operators matter: a model with random weights will do. On the other machine:
    graphcompress optimize model.onnx --profile profile.json

    Example: graphcompress tune model.onnx --passes kron,int8 --out profile.json
    """
    from graphcompress.build.tuning import tune as measure
    from graphcompress.cli.short import with_options
    from graphcompress.errors import UsageError
    from graphcompress.measure.cache import machine_facts
    from graphcompress.measure.profile import check_profile_path, write_profile
    from graphcompress.measure.shapes import format_shapes
    from graphcompress.pipeline.pipeline import Pipeline
    from graphcompress.plugin.targeting import parse_target

    chosen = parse_target(with_options(target, shapes=shapes))
    measured = chosen.tuned_at
    if not measured:
        raise UsageError(f"target {chosen.name} measures nothing; tune is for targets that do, such as cpu")
    check_profile_path(output)
    # Every build simplifies first, so that only sites in simplified graphs are looked up later.
    pipelines = dict.fromkeys((SIMPLIFY, passes if SIMPLIFY in passes else f"{SIMPLIFY},{passes}"))
    with progress_bars() as progress:
        times = measure(
            models,
            chosen,
            [Pipeline.parse(text) for text in pipelines],
            data=data,
            tokenizer=tokenizer,
            max_length=max_length,
            seed=seed,
            progress=progress,
        )
    at = format_shapes(measured)
    write_profile(output, measured, times)
    facts = machine_facts()
    if json:
        print_json({"profile": str(output), "sites": len(times), "shapes": at, "machine": facts})
        return
    tell(
        f"{len(times)} kinds of sites measured at {at} on {facts['processor'] or facts['architecture']} "
        f"({facts['cores']} cores, ONNX Runtime {facts['onnxruntime']}), written to {output}\n"
        f"build for this machine elsewhere with: graphcompress optimize MODEL --profile {output}"
    )
