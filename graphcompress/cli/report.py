"""``graphcompress report``: artifacts side by side, on one page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from graphcompress.cli.terminal import tell


def report(
    artifacts: Annotated[list[Path], typer.Argument(help="Artifacts, or folders of several.")],
    output: Annotated[Path, typer.Option("--output", "-o", help="The page, an .html file.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a file that is there.")] = False,
) -> None:
    """Write one page with several artifacts side by side: figures, and size against metric and outputs.

    The page of a single artifact lies in it: report.html.

    Example: graphcompress report small smaller smallest -o compare.html
    """
    from graphcompress.build.report_file import check_report_path, write_comparison

    check_report_path(output, overwrite=overwrite)
    names = write_comparison(output, artifacts)
    tell(f"{len(names)} artifacts side by side in {output}: {', '.join(names)}")
