"""Data files → columns: jsonl, csv, tsv, npz, parquet; a broken one is refused in one sentence."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import numpy as np

from graphcompress.errors import DataError, nearest

Columns = dict[str, list[Any]]
"""Column name → one entry per row."""


_OTHER_FILES = {
    ".json": "write one object in each line, and call it .jsonl",
    ".txt": 'write each line as {"text": "…"}, and call the file .jsonl',
    ".npy": "name the arrays by the inputs of the model: numpy.savez('data.npz', input_ids=…)",
    ".arrow": "save the data set with to_json('data.jsonl') or to_parquet('data.parquet')",
}
"""Suffix of a file that is often taken for data → what to do with it."""


def _instead(suffix: str) -> str:
    return _OTHER_FILES.get(suffix) or nearest(suffix, _READERS)


def read_columns(path: Path) -> Columns:
    """Columns of ``path`` (.jsonl, .csv, .tsv, .parquet, .npz; text also with .gz), equally long.

    Raises:
        DataError: no such file, another kind of file, damaged, or empty.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such data file; check the path")
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    if suffix not in _READERS:
        what = (
            f"unknown kind of data file {suffix!r}"
            if suffix
            else "a data file has a suffix that says its kind"
        )
        raise DataError(f"{path}: {what}; {_instead(suffix)}")
    try:
        columns = _READERS[suffix](path)
    except DataError:
        raise
    except Exception as error:  # of csv, json, zip, gzip, NumPy, pyarrow: there is no common base
        problem = str(error).partition("\n")[0][:200] or type(error).__name__
        raise DataError(f"{path}: cannot be read as {suffix} ({problem}); check the file") from error
    lengths = {name: len(values) for name, values in columns.items()}
    if not any(lengths.values()):
        raise DataError(f"{path}: holds no rows; give a file with at least one sample")
    if len(set(lengths.values())) > 1:
        raise DataError(
            f"{path}: columns differ in length ({lengths}); every column needs one entry per sample"
        )
    return columns


def _text(path: Path) -> io.TextIOBase:
    if path.suffix == ".gz":
        # Spreadsheets write a byte order mark, which utf-8 alone would make part of the first column's name.
        return cast("io.TextIOBase", gzip.open(path, "rt", encoding="utf-8-sig", newline=""))
    # The csv module reads ends of lines itself, for a quoted field may hold some.
    return path.open(encoding="utf-8-sig", newline="")


def _read_jsonl(path: Path) -> Columns:
    with _text(path) as file:
        rows = [json.loads(line) for line in file if line.strip()]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or row.keys() != rows[0].keys():
            raise DataError(
                f"{path}: row {number} has other columns than row 1; every line must be one object alike"
            )
    return {key: [row[key] for row in rows] for key in rows[0]} if rows else {}


def _read_csv(path: Path) -> Columns:
    # In the .tsv files of GLUE a quotation mark is a letter like any other, and often stands alone.
    tabs = ".tsv" in path.suffixes
    with _text(path) as file:
        rows = list(
            csv.reader(
                file,
                delimiter="\t" if tabs else ",",
                quoting=csv.QUOTE_NONE if tabs else csv.QUOTE_MINIMAL,
                strict=True,
            )
        )
    rows = [row for row in rows if row]
    for number, row in enumerate(rows, 1):
        if len(row) != len(rows[0]):
            raise DataError(
                f"{path}: row {number} has {len(row)} fields, the header has {len(rows[0])}; correct that row"
            )
    repeated = next((name for name, times in Counter(rows[0] if rows else ()).items() if times > 1), None)
    if repeated is not None:
        raise DataError(f"{path}: the header names column {repeated!r} twice; give each column its own name")
    return {name: [row[index] for row in rows[1:]] for index, name in enumerate(rows[0])} if rows else {}


def _read_npz(path: Path) -> Columns:
    # To read a pickled array runs whatever its author wrote into it.
    with np.load(path, allow_pickle=False) as arrays:
        return {name: list(arrays[name]) for name in arrays.files}


def _read_parquet(path: Path) -> Columns:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{path}: reading parquet needs pyarrow: pip install 'graphcompress[parquet]'"
        ) from error
    return dict(pyarrow.parquet.read_table(path).to_pydict())


_READERS: dict[str, Callable[[Path], Columns]] = {
    ".jsonl": _read_jsonl,
    ".csv": _read_csv,
    ".tsv": _read_csv,
    ".npz": _read_npz,
    ".parquet": _read_parquet,
}
