"""What the commands share: where text goes, progress bars, JSON."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from graphcompress.build.request import OUTPUT, Request
from graphcompress.cli.progress import shown_on
from graphcompress.plugin.legible import legible
from graphcompress.reporting.wrapping import WIDTH, wrapped
from graphcompress.training.processes import rank

if TYPE_CHECKING:
    from graphcompress.data.load import Samples
    from graphcompress.graph.model import Model
    from graphcompress.plugin.context import Progress


def field_of(name: str) -> dataclasses.Field[Any]:
    """The field of :class:`Request` with that name."""
    return {field.name: field for field in dataclasses.fields(Request)}[name]


def as_option(name: str) -> typer.models.OptionInfo:
    """The option of the command line for a field of :class:`Request`."""
    field = field_of(name)
    flags = field.metadata["flags"] or (f"--{name.replace('_', '-')}",)
    shown = field.metadata["unset"] or (field.default is not False and str(field.default))
    group = field.metadata["group"] or None
    made = typer.Option(*flags, help=field.metadata["help"], show_default=shown, rich_help_panel=group)
    return made  # type: ignore[no-any-return]


Json = Annotated[
    bool, typer.Option("--json", help="Print one JSON document instead of text.", rich_help_panel=OUTPUT)
]
Data = Annotated[Path | None, as_option("data")]
Tokenizer = Annotated[Path | None, as_option("tokenizer")]
MaxLength = Annotated[int | None, as_option("max_length")]
Seed = Annotated[int, as_option("seed")]

FILE_WIDTH = 200
"""A table that does not go to a terminal has lines of at most this many characters."""


class _Screen(Console):
    """A console on which names out of a file can neither move the cursor nor colour what follows."""

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - as rich has them
        return super().render_str(legible(text), **options)


def out() -> Console:
    """Results, on standard output; lines are never broken by force, tables only to fit a terminal."""
    console = _Screen(highlight=False, soft_wrap=True, markup=False, quiet=rank() > 0)
    # Rich takes 80 columns for granted there, and would break the lines of tables.
    if not console.is_terminal:
        console.width = FILE_WIDTH
    return console


def tell(text: str) -> None:
    """Print results on standard output: to a terminal in lines that fit, to a file each in one.

    A line that goes on is set in by four columns more than it begins.
    """
    console = out()
    for line in text.splitlines():
        indent = " " * (len(line) - len(line.lstrip()) + 4)
        fits = wrapped(line, min(console.width, WIDTH), indent) if console.is_terminal else line
        console.print(fits)


def err() -> Console:
    """What is said beside results, on standard error."""
    return _Screen(stderr=True, highlight=False, soft_wrap=True, markup=False, quiet=rank() > 0)


def print_json(document: object) -> None:
    """One JSON document on standard output."""
    if rank() > 0:
        return
    # NaN, which Python would write, is no JSON.
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def progress_bars(stages: Sequence[str] = ()) -> AbstractContextManager[Progress]:
    """The progress of a run of ``stages`` on standard error, see :mod:`graphcompress.cli.progress`."""
    return shown_on(err(), stages)


def samples_for(
    model: Model,
    data: Path | None,
    tokenizer: Path | None,
    seed: int,
    *,
    max_length: int | None = None,
    timed: bool = False,
) -> Samples:
    """The samples of ``data``, or made-up ones that fit; of similar sizes where they are ``timed``."""
    from graphcompress.data.load import load_samples
    from graphcompress.data.made_up import synthetic_samples, varied_samples

    if data is None:
        return (synthetic_samples if timed else varied_samples)(model, count=16, seed=seed)
    return load_samples(data, model, tokenizer=tokenizer, max_length=max_length)


def origin(*, made_up: bool) -> str:
    """Where samples are from, for the printed figures."""
    return "made-up samples (give real ones with --data)" if made_up else "samples of the data file"
