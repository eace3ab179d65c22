"""What the commands share: where text goes, progress bars, JSON."""

from __future__ import annotations

import contextlib
import dataclasses
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.text import Text

from graphcompress.build.request import Request
from graphcompress.plugin.legible import legible
from graphcompress.training.processes import rank

if TYPE_CHECKING:
    from graphcompress.data.load import Samples
    from graphcompress.graph.model import Model
    from graphcompress.plugin.base import Progress


def as_option(name: str) -> typer.models.OptionInfo:
    """The option of the command line for a field of :class:`Request`."""
    field = {field.name: field for field in dataclasses.fields(Request)}[name]
    flags = field.metadata["flags"] or (f"--{name.replace('_', '-')}",)
    shown = field.metadata["unset"] or (field.default is not False and str(field.default))
    return typer.Option(*flags, help=field.metadata["help"], show_default=shown)  # type: ignore[no-any-return]


Json = Annotated[bool, typer.Option("--json", help="Print one JSON document instead of text.")]
Data = Annotated[Path | None, as_option("data")]
Tokenizer = Annotated[Path | None, as_option("tokenizer")]
Seed = Annotated[int, as_option("seed")]

SECONDS_PER_LINE = 20.0
"""Where progress does not go to a terminal, two lines of it are at least this many seconds apart."""

FILE_WIDTH = 200
"""A table that does not go to a terminal has lines of at most this many characters."""


class _Screen(Console):
    """A console on which names out of a file can neither move the cursor nor colour what follows."""

    def render_str(self, text: str, **options: Any) -> Text:  # noqa: ANN401 - as rich has them
        return super().render_str(legible(text), **options)


def out() -> Console:
    """Results, on standard output; lines are never broken by force, tables only to fit a terminal."""
    console = _Screen(highlight=False, soft_wrap=True, markup=False, quiet=rank() > 0)
    if not console.is_terminal:
        console.width = FILE_WIDTH
    return console


def print_json(document: object) -> None:
    """One JSON document on standard output."""
    if rank() > 0:
        return
    sys.stdout.write(json.dumps(document, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


@contextlib.contextmanager
def progress_bars() -> Iterator[Progress]:
    """Progress bars on standard error: one line per piece of work, gone when it is finished.

    Where standard error is no terminal, long work that has details to tell (a training) prints a line now and
    then instead.
    """
    from rich.progress import BarColumn, Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = _Screen(stderr=True)
    columns = (
        SpinnerColumn(),
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        TimeElapsedColumn(),
        TextColumn("{task.fields[detail]}", markup=False),
    )
    with Progress(
        *columns, console=console, transient=True, disable=rank() > 0 or not console.is_terminal
    ) as bars:
        tasks: dict[str, Any] = {}
        printed = time.monotonic()

        def report(text: str, done: int, total: int, detail: str = "") -> None:
            nonlocal printed
            if bars.disable and detail and rank() == 0 and time.monotonic() - printed >= SECONDS_PER_LINE:
                printed = time.monotonic()
                console.print(
                    f"{text} {done:,} of {total:,}: {detail}", markup=False, highlight=False, soft_wrap=True
                )
            if text not in tasks:
                tasks[text] = bars.add_task(text, total=total, detail="")
            bars.update(tasks[text], completed=done, total=total, detail=detail)
            if done >= total:
                bars.remove_task(tasks.pop(text))

        yield report


def samples_for(
    model: Model, data: Path | None, tokenizer: Path | None, seed: int, *, timed: bool = False
) -> Samples:
    """The samples of ``data``, or made-up ones that fit; of similar sizes where they are ``timed``."""
    from graphcompress.data.load import load_samples
    from graphcompress.data.made_up import synthetic_samples, varied_samples

    if data is None:
        return (synthetic_samples if timed else varied_samples)(model, count=16, seed=seed)
    return load_samples(data, model, tokenizer=tokenizer)


def origin(samples: Samples) -> str:
    """Where samples are from, for the printed figures."""
    return "made-up samples (give real ones with --data)" if samples.synthetic else "samples of the data file"
