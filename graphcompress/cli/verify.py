"""``graphcompress verify``: are the outputs of B those of A, and does an answer depend on batch mates?"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

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
    tell,
)


def verify(
    a: Annotated[Path, typer.Argument(help="The reference: an ONNX file or an artifact.")],
    b: Annotated[Path, typer.Argument(help="What is compared with it.")],
    data: Data = None,
    tokenizer: Tokenizer = None,
    max_length: MaxLength = None,
    limit: Annotated[int, typer.Option(min=1, help="Rows of the data that are used.")] = 64,
    max_error: Annotated[
        float | None,
        typer.Option(min=0.0, help="Exit with 3 when the relative error is larger.", show_default="none"),
    ] = None,
    min_sqnr_db: Annotated[
        float | None, typer.Option(hidden=True, help="The same limit in dB, under its former name.")
    ] = None,
    seed: Seed = 0,
    json: Json = False,
) -> None:
    """Compare the outputs of two models on samples, and each model alone with itself in a padded batch.

    Before that the files of an artifact are compared with the hashes that its build wrote: exit with 3, and
    the name of the file, when one was changed or is missing. Of models that write, each also reads texts in
    steps with the keys and values that it returned itself: exit with 3 when B then says something else than
    in one pass over the same tokens.

    Example: graphcompress verify model.onnx small --data sentences.jsonl --max-error 0.2
    """
    from graphcompress.build.manifest import plain
    from graphcompress.build.questions import verify as ask
    from graphcompress.errors import ContractError
    from graphcompress.numerics.metrics import error_at
    from graphcompress.reporting.text import (
        continuity_line,
        difference_line,
        invariance_line,
        output_lines,
        own_cache_line,
    )

    with progress_bars() as progress:
        found = ask(
            a,
            b,
            data=data,
            tokenizer=tokenizer,
            max_length=max_length,
            limit=limit,
            seed=seed,
            progress=progress,
        )
    difference, invariances = found.difference, {"a": found.invariance_a, "b": found.invariance_b}
    if json:
        document = {
            "difference": plain(difference),
            "batch_invariance": plain(invariances),
            "own_cache": plain(found.own_cache),
            "continuity": plain({"a": found.continuity_a, "b": found.continuity_b}),
            "synthetic_samples": difference.made_up,
        }
        print_json(document)
    else:
        tell(f"{b} against {a}: {difference_line(difference)}")
        for line in output_lines(difference, most=len(difference.outputs)):
            tell(f"    {line}")
        for name, path in (("a", a), ("b", b)):
            tell(f"{path}: {invariance_line(invariances[name])}")
        if found.own_cache is not None:
            tell(f"{b} against {a}: {own_cache_line(found.own_cache)}")
        for path, continuity in ((a, found.continuity_a), (b, found.continuity_b)):
            if continuity is not None:
                tell(f"{path}: {continuity_line(continuity)}")
        tell(f"on {origin(made_up=difference.made_up)}")
    broken = found.continuity_b
    if broken is not None and broken.is_broken:
        raise ContractError(
            f"{b}: steps with its own cache say something else than one pass over the same tokens (relative "
            f"error {broken.error:.3g}, at most {broken.tolerance:g} is allowed); look at how it returns and "
            "reads past keys and values"
        )
    allowed = error_at(min_sqnr_db) if max_error is None and min_sqnr_db is not None else max_error
    error = error_at(difference.sqnr_db)
    if allowed is not None and error > allowed:
        raise ContractError(
            f"{b}: relative error {error:.3g} against {a} (SQNR {difference.sqnr_db:.1f} dB), "
            f"at most {allowed:.3g} is allowed"
        )
