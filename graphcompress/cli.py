"""The command line: parses, calls the library, prints."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Annotated, Optional

import typer

app = typer.Typer(
    no_args_is_help=True, add_completion=False, help="Make Transformers in ONNX small and fast."
)


@app.command()
def optimize(
    model: Path,
    passes: Annotated[str, typer.Option(help="passes in order")] = "simplify,int8",
    target: Annotated[str, typer.Option(help="runtime to lower for")] = "cpu",
    data: Annotated[Optional[Path], typer.Option(help="samples")] = None,
    output: Annotated[Optional[Path], typer.Option("--output", "-o")] = None,
    overwrite: bool = False,
) -> None:
    """Compress a model."""
    from graphcompress.build import optimize as run

    result = run(model, passes, target=target, data=data, output=output, overwrite=overwrite)
    for record in result.records:
        print(record.text, record.size, record.step)
    print(result.before, result.after, result.artifact, result.invariance)


@app.callback()
def _root() -> None:
    """Make Transformers in ONNX small and fast."""


def main() -> None:
    """Run the command line; errors of the library become one sentence and their exit code."""
    from graphcompress.errors import GraphCompressError

    try:
        app()
    except GraphCompressError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(error.exit_code)
