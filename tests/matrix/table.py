"""docs/support.md: the matrix as tables, generated from the results."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from importlib import metadata

from matrix.checks import CHECKS, Result

Row = tuple[str, str]
"""Name of the architecture, text of the variant."""

MARKS = {"ok": "✓", "left": "○", "none": " ", "fails": "✗"}
VERSIONS = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript", "onnxslim", "onnxsim")

HEAD = """# Which models are supported

Written by `make matrix`; do not edit. Every row is a model of 2 or 3 layers with random weights, written by
one of torch's exporters, and every cell is a check that ran: ✓ holds (with the figure), ○ holds for what was
changed, and the note says in the library's own words what was left alone or refused, ✗ fails. – was not run
when this page was written.

{versions}

| column | what is checked |
|---|---|
{columns}
"""


FRESH = "All of them ran on the sources as they were when this page was written.\n"
STALE = """{stale} of them ran when a source file that their check can reach, or what it expects, read
differently (a comment is enough); the others ran on the sources as they were when this page was written.
"""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def page(results: Mapping[Row, Mapping[str, Result]], stale: int = 0) -> str:
    """The whole page; ``stale`` of its cells ran on other sources than those of now."""
    versions = ", ".join(f"{name} {_version(name)}" for name in VERSIONS)
    columns = "\n".join(f"| {name} | {_first_line(function)} |" for name, function in CHECKS.items())
    planned = len(results)
    run = {row: cells for row, cells in results.items() if cells}
    absent = {row: cells for row, cells in run.items() if is_absent(cells)}
    results = {row: cells for row, cells in run.items() if row not in absent}
    parts = [HEAD.format(versions=versions, columns=columns), _summary(results, planned, len(absent), stale)]
    notes: dict[str, int] = {}
    by_variant: dict[str, list[tuple[str, Mapping[str, Result]]]] = {}
    for (name, variant), cells in results.items():
        by_variant.setdefault(variant, []).append((name, cells))
    for variant, rows in by_variant.items():
        parts.append(f"## {variant[0].upper()}{variant[1:]}\n")
        parts.append(_table(rows, notes))
    if notes:
        parts.append("## Notes\n")
        parts.append("\n".join(f"{number}. {text}" for text, number in notes.items()) + "\n")
    if absent:
        parts.append("## Without a file\n")
        parts.append("Other tools fail before there is anything to compress, or have nothing to do.\n")
        parts.append(_list_absent(absent))
    return "\n".join(parts)


def is_absent(cells: Mapping[str, Result]) -> bool:
    """Whether there is no file for a row; such a row is listed apart, and its cells are not counted."""
    return any(result.state == "none" for result in cells.values())


def _list_absent(absent: Mapping[Row, Mapping[str, Result]]) -> str:
    lines: dict[str, list[str]] = {}
    for (name, variant), cells in absent.items():
        note = next(result.note for result in cells.values() if result.state == "none")
        lines.setdefault(f"{variant}: {note.partition(': ')[2]}", []).append(name)
    return "\n".join(f"- {what} ({', '.join(names)})" for what, names in lines.items()) + "\n"


def _first_line(function: object) -> str:
    return (function.__doc__ or "").partition("\n")[0].replace("``", "`")


def _summary(results: Mapping[Row, Mapping[str, Result]], planned: int, absent: int, stale: int) -> str:
    counts = Counter(result.state for cells in results.values() for result in cells.values())
    names = {name for name, _ in results}
    return (
        f"{len(names)} architectures, {len(results)} of {planned - absent} files, {counts.total()} cells: "
        f"{counts['ok']} hold, {counts['left']} with something left alone, {counts['fails']} fail.\n"
    ) + (STALE.format(stale=stale) if stale else FRESH)


def _table(rows: Sequence[tuple[str, Mapping[str, Result]]], notes: dict[str, int]) -> str:
    lines = [f"| model | {' | '.join(CHECKS)} |", "|---" * (len(CHECKS) + 1) + "|"]
    for name, cells in rows:
        texts = [_cell(cells.get(column), notes) for column in CHECKS]
        lines.append(f"| {name} | {' | '.join(texts)} |")
    return "\n".join(lines) + "\n"


def _cell(result: Result | None, notes: dict[str, int]) -> str:
    if result is None:
        return "–"
    figure = f"{MARKS[result.state]} {result.text}".strip()
    if not result.note:
        return figure
    number = notes.setdefault(result.note.replace("|", "\\|"), len(notes) + 1)
    return f"{figure} [{number}]"
