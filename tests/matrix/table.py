"""docs/support.md has a line for each architecture, docs/support-cells.md every cell."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from datetime import date
from importlib import metadata

from matrix.checks import CHECKS, Result

Row = tuple[str, str]
"""Name of the architecture, text of the variant."""

MARKS = {"ok": "✓", "left": "○", "none": " ", "fails": "✗"}
VERSIONS = ("torch", "transformers", "onnx", "onnxruntime", "onnxscript", "onnxslim", "onnxsim")

OVERVIEW = """# Which models are supported

Every architecture below was built with 2 or 3 layers and random weights and exported in several forms:
attention as one operator or spelled out, opsets 18 to 23, two exporters, half precision, files that other
tools had rewritten. Every form was put through the same {checks} checks. {counts}

"Can be cut" names what `prune` removes: nodes of the feed-forward layers (FFN) and attention heads (of keys
and values that are shared: groups of heads). "int8" is the range of the signal-to-noise ratio of the outputs
over all forms; the weights are random, so it compares architectures and says little about a trained model.
Operators of ONNX Runtime's own (SkipLayerNormalization and the like) are taken apart by `simplify`; only a
model that is trained without it has to be free of them.

A model that is not listed is no different to the library, which knows operators and no architectures:
`graphcompress inspect model.onnx` says what it finds. Every single cell is in
[support-cells.md](support-cells.md); `make matrix` writes both pages.

The results are of {date}, and of the checks and architectures that there were; `make test` runs a form of
each kind of model on the sources of today.

| architecture | forms | checks that hold | can be cut | int8 | what to know |
|---|---|---|---|---|---|
{rows}
"""

HEAD = """# Which models are supported: every cell

Written by `make matrix`; do not edit. Every row is a model of 2 or 3 layers with random weights, written by
one of torch's exporters, and every cell is a check that ran: ✓ holds (with the figure), ○ holds for what was
changed, and the note says in the library's own words what was left alone or refused, ✗ fails. – was not run
when this page was written. [support.md](support.md) has a line for each architecture.

{versions}

| column | what is checked |
|---|---|
{columns}
"""


BEFORE_SIMPLIFY = "before simplify: "
"""How a note begins that is about a model which nobody would train: one that simplify has not seen."""

FRESH = "All of them ran on the sources as they were when this page was written, on {date}.\n"
STALE = """{stale} of them ran when a source file that their check can reach, or what it expects, read
differently (a comment is enough); the others ran on the sources as they were when this page was written, on
{date}.
"""


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "(not installed)"


def overview(results: Mapping[Row, Mapping[str, Result]]) -> str:
    """The page that a user reads: a line for each architecture."""
    shown = {row: cells for row, cells in results.items() if cells and not is_absent(cells)}
    by_name: dict[str, list[Mapping[str, Result]]] = {}
    for (name, _), cells in shown.items():
        by_name.setdefault(name, []).append(cells)
    every = Counter(cell.state for cells in shown.values() for cell in cells.values())
    counts = (
        f"Of {every.total():,} checks {every['ok']:,} hold, {every['left']} hold for what was changed, with "
        f"something left alone and named, and {every['fails'] or 'none'} failed."
    )
    rows = "\n".join(_architecture(name, forms) for name, forms in by_name.items())
    return OVERVIEW.format(checks=len(CHECKS), counts=counts, date=_today(), rows=rows)


def _today() -> str:
    return f"{date.today():%d %B %Y}"


def _architecture(name: str, forms: Sequence[Mapping[str, Result]]) -> str:
    cells = [cell for form in forms for cell in form.values()]
    held = sum(cell.state != "fails" for cell in cells)
    notes = Counter(note for form in forms for note in _said(form))
    told = "; ".join(f"{note} ({count} form{'s' * (count > 1)})" for note, count in notes.items())
    return f"| {name} | {len(forms)} | {held} of {len(cells)} | {_cut(forms)} | {_decibels(forms)} | {told} |"


def _cut(forms: Sequence[Mapping[str, Result]]) -> str:
    """FFN, heads, or both, as the forms in which the analysis ran have them."""
    texts = [form["groups"].text for form in forms if "groups" in form]
    return ", ".join(unit for unit in ("FFN", "heads") if any(unit in text for text in texts))


def _decibels(forms: Sequence[Mapping[str, Result]]) -> str:
    """Over the forms in which everything was quantised."""
    cells = [form["int8"] for form in forms if "int8" in form]
    found = sorted(int(cell.text.removesuffix(" dB")) for cell in cells if cell.state == "ok")
    return (
        f"{found[0]} to {found[-1]} dB"
        if found and found[0] < found[-1]
        else f"{found[0]} dB"
        if found
        else "–"
    )


def _said(form: Mapping[str, Result]) -> set[str]:
    notes = [cell.note for cell in form.values() if cell.note]
    return {_short(note) for note in notes if not note.startswith(BEFORE_SIMPLIFY)}


def _short(note: str) -> str:
    """A note without the names in one model and without what to do about it."""
    told = re.split("; remove|; export|: Inputs|: '", note.replace("|", "\\|"))[0]
    return re.sub(r"\s*\([^)]*\)", "", told)


def page(results: Mapping[Row, Mapping[str, Result]], stale: int = 0) -> str:
    """Every cell; ``stale`` of them ran on other sources than those of now."""
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
    ) + (STALE if stale else FRESH).format(stale=stale, date=_today())


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
