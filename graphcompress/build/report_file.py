"""The report as a file of its own: Markdown, or one page of HTML."""

from __future__ import annotations

import html
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from graphcompress.build.report import markdown
from graphcompress.errors import OutputError, UsageError
from graphcompress.graph.temporary import Temporary
from graphcompress.plugin.legible import legible

if TYPE_CHECKING:
    from graphcompress.build.result import Build
    from graphcompress.measure.bench import ShapeResult


def write_report(path: Path, build: Build, benched: Sequence[ShapeResult] = ()) -> None:
    """Write the report to ``path``: Markdown for ``.md``, a page without outside parts for ``.html``.

    Raises:
        OutputError: it cannot be written.
    """
    text = legible(markdown(build, benched))
    try:
        with Temporary(path.parent) as folder:
            made = folder / "report"
            made.write_text(_html(text) if path.suffix == ".html" else text, encoding="utf-8")
            made.replace(path)
    except OSError as error:
        raise OutputError(f"{path}: the report cannot be written ({error.strerror})") from error


def check_report_path(path: Path, *, overwrite: bool = False) -> None:
    """Fail before any work when the report could not be written, or would replace a file.

    Raises:
        UsageError: another suffix, no such folder, or something is there that is not to be overwritten.
        OutputError: the folder is not writable.
    """
    if path.suffix not in (".md", ".html"):
        raise UsageError(f"{path}: a report ends in .md or .html")
    if not path.parent.is_dir():
        raise UsageError(f"{path}: there is no folder {path.parent}; make it first")
    if path.is_dir() or (path.exists() and not overwrite):
        raise UsageError(f"{path} exists; choose another name for the report, or replace it with --overwrite")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise OutputError(f"{path}: the report cannot be written ({path.parent} is read-only)")


_STYLE = (
    "body{font:15px/1.5 system-ui,sans-serif;max-width:72rem;margin:2rem auto;padding:0 1rem}"
    "table{border-collapse:collapse}td,th{border:1px solid #ccc;padding:.2rem .6rem;text-align:left}"
)


def _html(text: str) -> str:
    from markdown_it import MarkdownIt

    title = html.escape(text.partition("\n")[0].lstrip("# "))
    body = MarkdownIt("commonmark", {"html": False}).enable("table").render(text)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        f"<style>{_STYLE}</style></head>\n<body>\n{body}</body></html>\n"
    )
