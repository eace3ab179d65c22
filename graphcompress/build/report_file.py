"""The report as a file of its own: Markdown, or one page of HTML."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from graphcompress.artifact.folder import MANIFEST, read_manifest, read_times
from graphcompress.build.manifest import manifest, times_json
from graphcompress.build.recipe import recipe_text
from graphcompress.errors import OutputError, UsageError
from graphcompress.files.temporary import Temporary
from graphcompress.plugin.legible import legible
from graphcompress.reporting.loading import usage
from graphcompress.reporting.page import comparison, figures, page
from graphcompress.reporting.summary import result_lines, title
from graphcompress.reporting.text import markdown
from graphcompress.reporting.wrapping import WIDTH

if TYPE_CHECKING:
    from graphcompress.build.result import Build


def write_report(path: Path, build: Build) -> None:
    """Write the report to ``path``: Markdown for ``.md``, a page without outside parts for ``.html``.

    Raises:
        OutputError: it cannot be written.
    """
    text = html(build) if path.suffix == ".html" else legible(markdown(build, build.benched))
    _put(path, text)


def write_comparison(path: Path, artifacts: Sequence[Path]) -> list[str]:
    """Write the page of ``artifacts`` side by side to ``path``, and return their names.

    A folder of artifacts for several targets stands for all of them.

    Raises:
        UsageError: a folder is no artifact, or its manifest has not what the page shows.
        OutputError: the page cannot be written.
    """
    found = [folder for given in artifacts for folder in _single(given)]
    short = [folder.resolve().name for folder in found]
    names = short if len(set(short)) == len(short) else [folder.as_posix() for folder in found]
    manifests = [read_manifest(folder) for folder in found]
    for folder, one in zip(found, manifests, strict=True):
        if not {"recipe", "target", "before", "after", "verification"} <= one.keys():
            raise UsageError(f"{folder / MANIFEST}: not the manifest of one artifact; build it again")
    _put(path, legible(comparison(names, manifests, [read_times(folder) for folder in found])))
    return names


def _single(folder: Path) -> list[Path]:
    several = read_manifest(folder).get("artifacts")
    return [folder / name for name in several] if isinstance(several, list) else [folder]


def _put(path: Path, text: str) -> None:
    try:
        # Made beside its place and moved there: an interruption leaves the former report whole.
        with Temporary(path.parent) as folder:
            made = folder / "report"
            made.write_text(text, encoding="utf-8")
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


def charts(build: Build) -> str:
    """Charts of what each pass brought and cost, as one piece of HTML with their colours."""
    (first, *_) = build.lowered
    document = manifest(replace(build, lowered=(first,)), {})
    return figures(document, times_json(build, first) if build.benched else {})


def html(build: Build) -> str:
    """The page of an artifact, or of those of several targets side by side.

    Where no times were measured it depends on the build alone.
    """
    documents = {
        artifact.name: manifest(replace(build, lowered=(artifact,)), {}) for artifact in build.lowered
    }
    times = [times_json(build, artifact) if build.benched else {} for artifact in build.lowered]
    if len(build.lowered) > 1:
        return legible(comparison(list(documents), list(documents.values()), times))
    (artifact,) = build.lowered
    # The page is part of the artifact, whose bytes depend neither on its place nor on times.
    lines = [
        (topic, text)
        for topic, text in result_lines(build, artifact, build.benched)
        if topic != "written" and (build.benched or topic != "speed")
    ]
    lines += [("goal", f"{goal.text}: {goal.found or 'met'}") for goal in build.goals.get(artifact.name, ())]
    code = usage(artifact, WIDTH)
    document, recipe = documents[artifact.name], recipe_text(build.recipe)
    return legible(page(title(build, artifact), lines, document, recipe, code, times=times[0]))
