"""Run the matrix and write the page: ``python -m matrix --page docs/support.md``.

Exports and results are kept in ``--cache``; a run that was stopped goes on where it was. A change of the
library's sources makes the checks run again, not the exports.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import functools
import hashlib
import json
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import graphcompress.passes
import graphcompress.targets

import graphcompress
from matrix.architectures import ARCHITECTURES
from matrix.checks import CHECKS, Result, check
from matrix.subject import Subject
from matrix.table import MARKS, page
from matrix.variants import Variant, export, export_file, variants

Cells = dict[str, Result]


def main() -> int:
    """Run what is asked for; 1 when a cell fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".matrix"), help="folder of exports and results")
    parser.add_argument("--page", type=Path, help="file to write")
    parser.add_argument("--only", default="*", help="glob over the names of architectures")
    parser.add_argument("--variant", default="*", help="glob over variants, such as 'sdpa, opset 18'")
    parser.add_argument("--columns", default="*", help="glob over columns")
    parser.add_argument("--no-export", action="store_true", help="only exports that the cache holds")
    arguments = parser.parse_args()
    failed = False
    for name, variant in _chosen(arguments.only, arguments.variant):
        if arguments.no_export and not export_file(name, variant, arguments.cache).exists():
            continue
        started = time.perf_counter()
        cells = _run(name, variant, arguments.cache, arguments.columns)
        failed |= any(result.state == "fails" for result in cells.values())
        _tell(f"{name} · {variant}", cells, time.perf_counter() - started)
    if arguments.page:
        every = list(_chosen("*", "*"))
        results = {(name, str(variant)): _known(name, variant, arguments.cache) for name, variant in every}
        arguments.page.write_text(page(results), encoding="utf-8")
    return int(failed)


def _chosen(only: str, form: str) -> Iterator[tuple[str, Variant]]:
    """Variants, and in each the architectures that have it."""
    every = [(name, variant) for name, item in ARCHITECTURES.items() for variant in variants(name, item)]
    order = sorted(
        {variant for _, variant in every}, key=lambda v: (v.opset, v.stripped, v.attention == "eager")
    )
    for variant in order:
        for name, other in every:
            if variant == other and fnmatch.fnmatch(name, only) and fnmatch.fnmatch(str(variant), form):
                yield name, variant


def _run(name: str, variant: Variant, cache: Path, columns: str) -> Cells:
    """The cells of one export, from the cache where nothing has changed."""
    subject = Subject(export(name, ARCHITECTURES[name], variant, cache))
    cells = _known(name, variant, cache)
    for column in CHECKS:
        if column not in cells and fnmatch.fnmatch(column, columns):
            cells[column] = check(column, subject)
    record = {"sources": _sources(), "cells": {key: dataclasses.asdict(cell) for key, cell in cells.items()}}
    _store(name, variant, cache).write_text(json.dumps(record, indent=1))
    return cells


def _known(name: str, variant: Variant, cache: Path) -> Cells:
    """Results of earlier runs of the same sources."""
    store = _store(name, variant, cache)
    known = json.loads(store.read_text()) if store.exists() else {}
    if known.get("sources") != _sources():
        return {}
    return {column: Result(**cell) for column, cell in known["cells"].items()}


def _store(name: str, variant: Variant, cache: Path) -> Path:
    file = export_file(name, variant, cache)
    return file.with_name(f"{file.stem}{'-stripped' if variant.stripped else ''}.results.json")


@functools.cache
def _sources() -> str:
    """Hash of the library and of the matrix itself."""
    digest = hashlib.sha256()
    for package in (graphcompress, graphcompress.passes, graphcompress.targets, sys.modules["matrix"]):
        for file in sorted(Path(str(package.__file__)).parent.rglob("*.py")):
            digest.update(file.read_bytes())
    return digest.hexdigest()


def _tell(title: str, cells: Cells, seconds: float) -> None:
    marks = "".join(MARKS[cell.state] for cell in cells.values())
    print(f"{marks}  {title}  {seconds:.0f} s", flush=True)
    for column, cell in cells.items():
        if cell.state == "fails":
            print(f"    {column}: {cell.text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
