"""``graphcompress generate``: what a model writes."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated

import typer

from graphcompress.cli.terminal import Json, Tokenizer, out, print_json, progress_bars


def generate(
    folder: Annotated[
        Path, typer.Argument(help="Folder with the parts of a model that writes, or one ONNX file.")
    ],
    text: Annotated[
        list[str] | None, typer.Option(help="A prompt, or what an encoder reads; may be given several times.")
    ] = None,
    file: Annotated[
        Path | None,
        typer.Option(help="File with one text a line; without it and --text: standard input."),
    ] = None,
    max_new_tokens: Annotated[
        int | None,
        typer.Option(min=1, help="Most tokens of an answer.", show_default="as generation_config.json says"),
    ] = None,
    beams: Annotated[
        int | None,
        typer.Option(
            min=1, help="Beams of the search; 1 is greedy.", show_default="as generation_config.json says"
        ),
    ] = None,
    batch: Annotated[int, typer.Option(min=1, help="Texts that run together.")] = 8,
    tokenizer: Tokenizer = None,
    json: Json = False,
) -> None:
    """Write what the model answers to each text, or how it goes on, one line each.

    Greedy or with beams and the rules of generation_config.json, as transformers does it; nothing is sampled.

    Example: graphcompress generate small --text "A man sits on a bench."
    """
    from graphcompress.generation.generator import open_generator
    from graphcompress.generation.settings import with_options

    texts = _texts(text or [], file)
    with progress_bars() as progress:
        generator = open_generator(folder, tokenizer=tokenizer)
        settings = with_options(generator.settings, new_tokens=max_new_tokens, beams=beams)
        written = generator.with_settings(settings).texts(texts, batch=batch, progress=progress)
    if json:
        print_json([{"text": asked, "answer": answer} for asked, answer in zip(texts, written, strict=True)])
        return
    for answer in written:
        # One line for each text, whatever was written: a script matches them by number.
        out().print(" ".join(answer.splitlines()))


def _texts(given: list[str], file: Path | None) -> list[str]:
    """The texts to answer.

    Raises:
        DataError: there are none, or the file cannot be read.
    """
    from graphcompress.errors import DataError

    try:
        lines = file.read_text(encoding="utf-8").splitlines() if file else []
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file}: cannot be read as text ({error})") from error
    if not given and file is None:
        lines = sys.stdin.read().splitlines()
    texts = [*given, *filter(str.strip, lines)]
    if not texts:
        raise DataError("no text to answer; give one with --text, a file with --file, or standard input")
    return texts
