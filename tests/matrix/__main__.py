"""Run the matrix and write the pages: ``python -m matrix --page docs/support.md``.

Exports and results are kept in ``--cache``; a run that was stopped goes on where it was. A change of the
library makes the checks run again that can reach what changed, not the exports.
"""

from __future__ import annotations

import argparse
import dataclasses
import fnmatch
import json
import time
from pathlib import Path

from matrix.architectures import ARCHITECTURES
from matrix.checks import CHECKS, Result, check
from matrix.exports import ExportError, export, export_file
from matrix.sources import fingerprint
from matrix.subject import Subject
from matrix.table import MARKS, is_absent, overview, page
from matrix.variants import Variant, urgency, variants

Cells = dict[str, Result]


def main() -> int:
    """Run what is asked for; 1 when a cell fails."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--cache", type=Path, default=Path(".matrix"), help="folder of exports and results")
    parser.add_argument(
        "--page", type=Path, help="file to write; every cell goes into a second one beside it"
    )
    parser.add_argument("--only", default="*", help="glob over the names of architectures")
    parser.add_argument("--variant", default="*", help="glob over variants, such as 'sdpa, opset 18'")
    parser.add_argument("--columns", default="*", help="globs over columns, with commas between")
    parser.add_argument("--share", default="1/1", help="part of the rows, such as 2/3: for several processes")
    parser.add_argument("--seconds", type=float, default=float("inf"), help="no new row after that time")
    parser.add_argument(
        "--keep", action="store_true", help="cells of earlier code that hold are not run again"
    )
    arguments = parser.parse_args()
    failed, begun = False, time.perf_counter()
    for name, variant in _share(_chosen(arguments.only, arguments.variant), arguments.share):
        started = time.perf_counter()
        if started - begun > arguments.seconds:
            break
        cells = _run(name, variant, arguments.cache, arguments.columns, keep=arguments.keep)
        failed |= any(result.state == "fails" for result in cells.values())
        _tell(f"{name} · {variant}", cells, time.perf_counter() - started)
    if arguments.page:
        every = _chosen("*", "*")
        results = {(name, str(v)): _known(name, v, arguments.cache, earlier=True) for name, v in every}
        shown = [(name, v) for name, v in every if not is_absent(results[name, str(v)])]
        counted = sum(len(results[name, str(v)]) for name, v in shown)
        stale = counted - sum(len(_known(name, v, arguments.cache)) for name, v in shown)
        arguments.page.write_text(overview(results), encoding="utf-8")
        every_cell = arguments.page.with_stem(f"{arguments.page.stem}-cells")
        every_cell.write_text(page(results, stale), encoding="utf-8")
    return int(failed)


def _chosen(only: str, form: str) -> list[tuple[str, Variant]]:
    """Architectures in their variants, the most telling first."""
    every = [(name, variant) for name, item in ARCHITECTURES.items() for variant in variants(name, item)]
    wanted = [
        (name, variant)
        for name, variant in every
        if fnmatch.fnmatch(name, only) and fnmatch.fnmatch(str(variant), form)
    ]
    return sorted(wanted, key=lambda pair: urgency(*pair))


def _share(rows: list[tuple[str, Variant]], share: str) -> list[tuple[str, Variant]]:
    """Rows of one of several processes; those that come from one export stay together."""
    number, _, count = share.partition("/")
    names = list(ARCHITECTURES)
    return [(name, v) for name, v in rows if names.index(name) % int(count) == int(number) - 1]


def _run(name: str, variant: Variant, cache: Path, columns: str, *, keep: bool) -> Cells:
    """The cells of one row, from the cache where nothing that they depend on has changed."""
    cells = _known(name, variant, cache)
    if keep:
        earlier = _known(name, variant, cache, earlier=True)
        cells = {column: cell for column, cell in earlier.items() if cell.state != "fails"} | cells
    wanted = [
        column
        for column in CHECKS
        if column not in cells and any(fnmatch.fnmatch(column, glob) for glob in columns.split(","))
    ]
    if not wanted:
        return cells
    try:
        subject = Subject(export(name, ARCHITECTURES[name], variant, cache))
    except ExportError as error:
        made = {column: Result("none", "", f"there is no such file: {error}") for column in wanted}
    else:
        made = {column: check(column, subject) for column in wanted}
    store = _store(name, variant, cache)
    store.parent.mkdir(parents=True, exist_ok=True)
    stored = _stored(store) | {
        column: {"sources": _sources(name, column), **dataclasses.asdict(cell)}
        for column, cell in made.items()
    }
    store.write_text(json.dumps({column: stored[column] for column in CHECKS if column in stored}, indent=1))
    return {column: {**cells, **made}[column] for column in CHECKS if column in cells or column in made}


def _known(name: str, variant: Variant, cache: Path, *, earlier: bool = False) -> Cells:
    """Results of earlier runs of the same sources, or of ``earlier`` ones too."""
    return {
        column: Result(**{key: value for key, value in cell.items() if key != "sources"})
        for column, cell in _stored(_store(name, variant, cache)).items()
        if column in CHECKS and (earlier or cell["sources"] == _sources(name, column))
    }


def _stored(store: Path) -> dict[str, dict[str, str]]:
    """Cells as they are in the cache."""
    return json.loads(store.read_text()) if store.exists() else {}


def _store(name: str, variant: Variant, cache: Path) -> Path:
    return export_file(name, variant, cache).with_suffix(".cells.json")


def _sources(name: str, column: str) -> str:
    item = ARCHITECTURES[name]
    return fingerprint(column, CHECKS[column], (item.heads, item.ffn, item.head_groups))


def _tell(title: str, cells: Cells, seconds: float) -> None:
    marks = "".join(MARKS[cell.state] for cell in cells.values())
    print(f"{marks}  {title}  {seconds:.0f} s", flush=True)
    for column, cell in cells.items():
        if cell.state == "fails":
            print(f"    {column}: {cell.text}", flush=True)


if __name__ == "__main__":
    raise SystemExit(main())
