"""Samples: rows of a data file (and a tokenizer) → feeds of a model."""

from __future__ import annotations

import csv
import gzip
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import tokenizers

from graphcompress.analysis.linears import embeddings
from graphcompress.errors import DataError, nearest
from graphcompress.model import Model

Pair = Literal["joint", "separate"]
TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "context"),
    ("question", "sentence"),
)
SINGLE_TEXT_COLUMNS = ("sentence", "text", "content", "review", "context")
DEFAULT_MAX_LENGTH = 128

Sample = Mapping[str, np.ndarray]
"""One sample: input name → array without the batch dimension."""


@dataclass(frozen=True)
class Samples:
    """Feeds of single samples, with the columns of the data beside them.

    Attributes:
        feeds: one per sample, arrays without the batch dimension.
        columns: other columns of the data (labels, scores), one entry per row.
        pad: input name → value that fills a shorter sample up (0 where not given).
        per_row: samples per data row: 2 where the two texts of a pair are encoded separately.
        synthetic: made up from the model's inputs, not a user's data.
    """

    feeds: Sequence[Sample]
    columns: Mapping[str, Sequence[Any]] = field(default_factory=dict)
    pad: Mapping[str, int] = field(default_factory=dict)
    per_row: int = 1
    synthetic: bool = False

    def __len__(self) -> int:
        return len(self.feeds)

    def first(self, count: int) -> Samples:
        """The first ``count`` rows."""
        columns = {name: values[:count] for name, values in self.columns.items()}
        return Samples(self.feeds[: count * self.per_row], columns, self.pad, self.per_row, self.synthetic)

    def batches(self, size: int, *, by_length: bool = False) -> Iterator[dict[str, np.ndarray]]:
        """Feeds of up to ``size`` samples, shorter ones padded at the end; ``by_length`` sorts to pad less."""
        order = self.order(by_length=by_length)
        for start in range(0, len(order), size):
            yield self.batch(order[start : start + size])

    def order(self, *, by_length: bool) -> list[int]:
        """Indices of the samples, from the shortest to the longest when ``by_length``."""
        indices = list(range(len(self.feeds)))
        if by_length:
            indices.sort(key=lambda index: _length(self.feeds[index]))
        return indices

    def batch(self, indices: Sequence[int]) -> dict[str, np.ndarray]:
        """One padded feed of the samples at ``indices``."""
        chosen = [self.feeds[index] for index in indices]
        return {
            name: _stack([sample[name] for sample in chosen], self.pad.get(name, 0)) for name in chosen[0]
        }


def load_samples(
    path: str | Path,
    model: Model,
    *,
    tokenizer: str | Path | None = None,
    pair: Pair = "joint",
    limit: int | None = None,
    max_length: int = DEFAULT_MAX_LENGTH,
) -> Samples:
    """Read ``path`` (.jsonl, .csv, .tsv, .parquet, .npz, the text ones also .gz) as samples for ``model``.

    Columns named like the model's inputs are used as they are; otherwise text columns are tokenized with
    ``tokenizer`` (a ``tokenizer.json``, or a folder that holds one; found by itself beside the model).
    ``pair="separate"`` encodes the two texts of a pair as two samples.

    Raises:
        DataError: no such file, no usable columns, or a tokenizer that does not fit the model.
    """
    path = Path(path)
    columns = _read_columns(path)
    rows = min((len(values) for values in columns.values()), default=0)
    if rows == 0:
        raise DataError(f"{path}: no rows")
    columns = {name: values[: limit or rows] for name, values in columns.items()}
    inputs = {
        value.name or "": value for value in model.graph.inputs if value.name not in model.graph.initializers
    }
    if set(inputs) <= set(columns):
        return _from_arrays(path, columns, inputs)
    return _from_text(path, columns, model, inputs, _find_tokenizer(tokenizer, model), pair, max_length)


def synthetic_samples(model: Model, *, count: int = 8, length: int = 24, seed: int = 0) -> Samples:
    """Made-up samples that fit the model's inputs: random token ids, masks of ones, normal floats.

    Enough to compare two forms of one model; no substitute for data when activations are calibrated.
    """
    rng = np.random.default_rng(seed)
    rows = {id(item.indices): item.rows for item in embeddings(model)}
    feeds = []
    for index in range(count):
        size = max(2, length - 2 * (index % 8))
        feeds.append(
            {
                value.name or "": _synthetic(value, rows.get(id(value)), size, rng)
                for value in model.graph.inputs
                if value.name not in model.graph.initializers
            }
        )
    return Samples(feeds, synthetic=True)


def _synthetic(value: ir.Value, rows: int | None, length: int, rng: np.random.Generator) -> np.ndarray:
    shape = [dim if isinstance(dim, int) else length for dim in list(value.shape or [])[1:]]
    if value.dtype is None:
        raise DataError(f"input {value.name!r} has no data type; give samples with --data")
    dtype = value.dtype.numpy()
    name = (value.name or "").lower()
    if value.dtype.is_floating_point():
        return rng.standard_normal(shape).astype(dtype)
    if "mask" in name:
        return np.ones(shape, dtype)
    if "position" in name:
        return np.broadcast_to(np.arange(shape[-1] if shape else 1), shape).astype(dtype)
    if "type" in name or "segment" in name:
        return np.zeros(shape, dtype)
    return rng.integers(0, rows or 2, shape).astype(dtype)


# ---- files


def _read_columns(path: Path) -> dict[str, list[Any]]:
    if not path.is_file():
        raise DataError(f"{path}: no such data file")
    suffix = Path(path.stem).suffix if path.suffix == ".gz" else path.suffix
    readers = {
        ".jsonl": _read_jsonl,
        ".csv": _read_csv,
        ".tsv": _read_csv,
        ".npz": _read_npz,
        ".parquet": _read_parquet,
    }
    if suffix not in readers:
        raise DataError(f"{path}: unknown kind of data file {suffix!r}; {nearest(suffix, readers)}")
    try:
        return readers[suffix](path)
    except (ValueError, KeyError, OSError, EOFError, csv.Error) as error:
        if isinstance(error, DataError):
            raise
        raise DataError(f"{path}: cannot be read as {suffix} ({error})") from error


def _text(path: Path) -> io.TextIOBase:
    return (
        gzip.open(path, "rt", encoding="utf-8")
        if path.suffix == ".gz"
        else path.open(encoding="utf-8", newline="")
    )  # type: ignore[return-value]


def _read_jsonl(path: Path) -> dict[str, list[Any]]:
    with _text(path) as file:
        rows = [json.loads(line) for line in file if line.strip()]
    for number, row in enumerate(rows, 1):
        if not isinstance(row, dict) or row.keys() != rows[0].keys():
            raise DataError(
                f"{path}: row {number} has other columns than row 1; every line must be one object alike"
            )
    return {key: [row[key] for row in rows] for key in rows[0]} if rows else {}


def _read_csv(path: Path) -> dict[str, list[Any]]:
    delimiter = "\t" if ".tsv" in path.suffixes else ","
    with _text(path) as file:
        rows = list(
            csv.DictReader(
                file, delimiter=delimiter, quoting=csv.QUOTE_NONE if delimiter == "\t" else csv.QUOTE_MINIMAL
            )
        )
    return {key: [row[key] for row in rows] for key in rows[0]} if rows else {}


def _read_npz(path: Path) -> dict[str, list[Any]]:
    with np.load(path, allow_pickle=False) as arrays:
        return {name: list(arrays[name]) for name in arrays.files}


def _read_parquet(path: Path) -> dict[str, list[Any]]:
    try:
        import pyarrow.parquet
    except ImportError as error:
        raise DataError(
            f"{path}: reading parquet needs pyarrow: pip install 'graphcompress[parquet]'"
        ) from error
    return dict(pyarrow.parquet.read_table(path).to_pydict())


# ---- rows to feeds


def _from_arrays(path: Path, columns: dict[str, list[Any]], inputs: Mapping[str, ir.Value]) -> Samples:
    feeds = []
    for index in range(len(next(iter(columns.values())))):
        sample = {}
        for name, value in inputs.items():
            array = np.asarray(columns[name][index], dtype=value.dtype.numpy() if value.dtype else None)
            if value.shape is not None and array.ndim != len(value.shape) - 1:
                raise DataError(
                    f"{path}: column {name!r} row {index + 1} has shape {list(array.shape)}, "
                    f"input {name!r} takes {value.shape} with the batch in front"
                )
            sample[name] = array
        feeds.append(sample)
    return Samples(feeds, {name: values for name, values in columns.items() if name not in inputs})


def _from_text(
    path: Path,
    columns: dict[str, list[Any]],
    model: Model,
    inputs: Mapping[str, ir.Value],
    tokenizer: tokenizers.Tokenizer | None,
    pair: Pair,
    max_length: int,
) -> Samples:
    texts = _text_columns(columns)
    if not texts:
        raise DataError(
            f"{path}: columns {sorted(columns)} are neither the model's inputs {sorted(inputs)} nor texts "
            f"(sentence, text, sentence1 + sentence2, …); rename the columns"
        )
    if tokenizer is None:
        raise DataError(
            f"{path}: texts need a tokenizer; put tokenizer.json beside the model or give --tokenizer"
        )
    _check_vocabulary(tokenizer, model, inputs)
    tokenizer.no_padding()
    tokenizer.enable_truncation(_longest(model, inputs, max_length))
    if len(texts) == 2 and pair == "joint":
        encodings = tokenizer.encode_batch(list(zip(columns[texts[0]], columns[texts[1]], strict=True)))
    else:
        encodings = tokenizer.encode_batch(
            [columns[text][row] for row in range(len(columns[texts[0]])) for text in texts]
        )
    feeds = [
        {name: _encoded(name, value, encoding) for name, value in inputs.items()} for encoding in encodings
    ]
    rest = {name: values for name, values in columns.items() if name not in texts}
    pad = {name: _pad_id(tokenizer) for name in inputs if _kind(name) == "ids"}
    return Samples(feeds, rest, pad, per_row=len(feeds) // len(columns[texts[0]]))


def _text_columns(columns: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    for names in (*TEXT_COLUMNS, *((name,) for name in SINGLE_TEXT_COLUMNS)):
        if all(name in columns and isinstance(columns[name][0], str) for name in names):
            return names
    return ()


def _kind(name: str) -> str:
    lowered = name.lower()
    for key, kind in (
        ("mask", "mask"),
        ("type", "type"),
        ("segment", "type"),
        ("position", "position"),
        ("ids", "ids"),
    ):
        if key in lowered:
            return kind
    return ""


def _encoded(name: str, value: ir.Value, encoding: tokenizers.Encoding) -> np.ndarray:
    kind = _kind(name)
    values = {
        "ids": encoding.ids,
        "mask": encoding.attention_mask,
        "type": encoding.type_ids,
        "position": range(len(encoding.ids)),
    }.get(kind)
    if values is None:
        raise DataError(f"input {name!r} cannot be made from text; give data with a column of that name")
    return np.asarray(values, dtype=value.dtype.numpy() if value.dtype else np.int64)


def _find_tokenizer(tokenizer: str | Path | None, model: Model) -> tokenizers.Tokenizer | None:
    if tokenizer is None:
        beside = model.path.parent / "tokenizer.json" if model.path else None
        if beside is None or not beside.is_file():
            return None
        return tokenizers.Tokenizer.from_file(str(beside))
    path = Path(tokenizer)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path}: no such tokenizer; give a tokenizer.json or a folder that holds one")
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise DataError(f"{path}: not a tokenizer.json ({error})") from error


def _check_vocabulary(tokenizer: tokenizers.Tokenizer, model: Model, inputs: Mapping[str, ir.Value]) -> None:
    size = max(tokenizer.get_vocab(with_added_tokens=True).values()) + 1
    ids = {id(value) for name, value in inputs.items() if _kind(name) == "ids"}
    for embedding in embeddings(model):
        if id(embedding.indices) in ids and size > embedding.rows:
            raise DataError(
                f"the tokenizer has {size:,} tokens, the embedding {embedding.name!r} only {embedding.rows:,} rows; "
                "it belongs to another model"
            )


def _longest(model: Model, inputs: Mapping[str, ir.Value], max_length: int) -> int:
    fixed = [
        dim for name, value in inputs.items() if _kind(name) == "ids" for dim in list(value.shape or [])[1:]
    ]
    return min([max_length, *(dim for dim in fixed if isinstance(dim, int))])


def _pad_id(tokenizer: tokenizers.Tokenizer) -> int:
    for token in ("[PAD]", "<pad>", "<|endoftext|>"):
        found = tokenizer.token_to_id(token)
        if found is not None:
            return int(found)
    return 0


def _length(sample: Sample) -> int:
    return max((array.shape[0] for array in sample.values() if array.ndim), default=0)


def _stack(arrays: Sequence[np.ndarray], pad: int) -> np.ndarray:
    shape = np.max([array.shape for array in arrays], axis=0)
    stacked = np.full((len(arrays), *shape.astype(int)), pad, arrays[0].dtype)
    for row, array in zip(stacked, arrays, strict=True):
        row[tuple(slice(size) for size in array.shape)] = array
    return stacked
