"""Samples: rows of a data file (and a tokenizer) → feeds of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import onnx_ir as ir
import tokenizers

from graphcompress.analysis.linears import embeddings
from graphcompress.data.lengths import longest_sample, total_length
from graphcompress.data.samples import Sample, Samples
from graphcompress.data.tables import read_columns
from graphcompress.errors import DataError
from graphcompress.model import Model

__all__ = ["Pair", "Sample", "Samples", "load_samples", "synthetic_samples"]

Pair = Literal["joint", "separate"]
TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "context"),
    ("question", "sentence"),
)
SINGLE_TEXT_COLUMNS = ("sentence", "text", "content", "review", "context")
DEFAULT_MAX_LENGTH = 128


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
    columns = {name: values[:limit] for name, values in read_columns(path).items()}
    inputs = _inputs(model)
    if set(inputs) <= set(columns):
        samples = _from_arrays(path, columns, inputs)
    else:
        samples = _from_text(
            path, columns, model, inputs, _find_tokenizer(tokenizer, model), pair, max_length
        )
    return dataclasses.replace(samples, fixed=_fixed(inputs))


def synthetic_samples(model: Model, *, count: int = 8, length: int = 24, seed: int = 0) -> Samples:
    """Made-up samples that fit the model: random token ids, masks of ones, normal floats.

    The longest has ``length`` tokens, or as many as the model has positions when that is less. A model that
    reads past keys and values gets as many past tokens as new ones, and a mask over both.

    Enough to compare two forms of one model; no substitute for data when activations are calibrated.
    """
    rng = np.random.default_rng(seed)
    length, total = min(length, longest_sample(model) or length), total_length(model)
    joined: dict[str, ir.SymbolicDim] = {}
    if total is not None:
        length = max(1, length // 2)
        joined = dict.fromkeys(_lengths_of_one_mask(model), total)
    rows = {id(item.indices): item.rows for item in embeddings(model)}
    feeds = []
    for index in range(count):
        size = max(2, length - 2 * (index % 8))
        feeds.append(
            {
                name: _synthetic(value, _sizes(value, size, joined), rows.get(id(value)), rng)
                for name, value in _inputs(model).items()
            }
        )
    return Samples(feeds, synthetic=True, fixed=_fixed(_inputs(model)))


def _inputs(model: Model) -> dict[str, ir.Value]:
    """Inputs that a caller must give, by name; one that has an initializer need not be given."""
    return {
        value.name or "": value for value in model.graph.inputs if value.name not in model.graph.initializers
    }


def _lengths_of_one_mask(model: Model) -> list[str]:
    """Symbols of lengths that one mask has and no other input: the name an exporter gave to past and new."""
    found: dict[str, list[str]] = {}
    for value in model.graph.inputs:
        for dim in value.shape or ():
            if isinstance(dim, ir.SymbolicDim) and dim.value is not None:
                found.setdefault(str(dim), []).append((value.name or "").lower())
    return [symbol for symbol, names in found.items() if len(names) == 1 and "mask" in names[0]]


def _sizes(value: ir.Value, length: int, joined: Mapping[str, ir.SymbolicDim]) -> list[int]:
    """Sizes without the batch: every symbol is ``length``, an expression of symbols what it gives."""
    return [
        dim if isinstance(dim, int) else _evaluated(joined.get(str(dim), dim), length)
        for dim in list(value.shape or [])[1:]
    ]


def _evaluated(dim: ir.SymbolicDim, length: int) -> int:
    size = dim.evaluate(dict.fromkeys(dim.free_symbols(), length)) if dim.value is not None else None
    return int(size) if isinstance(size, int) else length


def _synthetic(
    value: ir.Value, shape: Sequence[int], rows: int | None, rng: np.random.Generator
) -> np.ndarray:
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


# ---- rows to feeds


def _from_arrays(path: Path, columns: dict[str, list[Any]], inputs: Mapping[str, ir.Value]) -> Samples:
    feeds = []
    for index in range(len(next(iter(columns.values())))):
        sample = {}
        for name, value in inputs.items():
            array = _array(path, name, index, columns[name][index], value)
            sample[name] = array
        feeds.append(sample)
    return Samples(feeds, {name: values for name, values in columns.items() if name not in inputs})


def _array(path: Path, name: str, index: int, entry: object, value: ir.Value) -> np.ndarray:
    where = f"{path}: column {name!r} row {index + 1}"
    try:
        array = np.asarray(entry, dtype=value.dtype.numpy() if value.dtype else None)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{where} is not an array of {value.dtype}, which input {name!r} takes ({error})"
        ) from error
    sizes = list(value.shape or [])[1:]
    if value.shape is not None and array.ndim != len(sizes):
        raise DataError(
            f"{where} has shape {list(array.shape)}, input {name!r} takes {value.shape}, batch first; "
            "give one array per sample, without the batch"
        )
    for seen, wanted in zip(array.shape, sizes, strict=False):
        if isinstance(wanted, int) and seen > wanted:
            raise DataError(
                f"{where} has shape {list(array.shape)}, input {name!r} takes at most {wanted}; cut it"
            )
    return array


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
    _check_texts(path, columns, texts)
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


def _check_texts(path: Path, columns: Mapping[str, Sequence[Any]], names: Sequence[str]) -> None:
    for name in names:
        for number, text in enumerate(columns[name], 1):
            if not isinstance(text, str):
                raise DataError(
                    f"{path}: column {name!r} row {number} is not a text but {text!r}; correct that row"
                )


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
        return _read_tokenizer(beside)
    path = Path(tokenizer)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path}: no such tokenizer; give a tokenizer.json or a folder that holds one")
    return _read_tokenizer(path)


def _read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    try:
        return tokenizers.Tokenizer.from_file(str(path))
    except Exception as error:  # the library raises bare Exception
        raise DataError(
            f"{path}: not a tokenizer.json ({error}); give the one that belongs to the model with --tokenizer"
        ) from error


def _check_vocabulary(tokenizer: tokenizers.Tokenizer, model: Model, inputs: Mapping[str, ir.Value]) -> None:
    size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    ids = {value for name, value in inputs.items() if _kind(name) == "ids"}
    for embedding in embeddings(model):
        if _source(embedding.indices) in ids and size > embedding.rows:
            raise DataError(
                f"the tokenizer has {size:,} tokens, the embedding {embedding.name!r} only "
                f"{embedding.rows:,} rows, so it is another model's; give the right one with --tokenizer"
            )


def _source(value: ir.Value) -> ir.Value:
    """The value before casts and reshapes, which change no index."""
    node = value.producer()
    while node is not None and node.op_type in _SAME_NUMBERS and node.inputs and node.inputs[0] is not None:
        value = node.inputs[0]
        node = value.producer()
    return value


_SAME_NUMBERS = frozenset({"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze"})


def _longest(model: Model, inputs: Mapping[str, ir.Value], max_length: int) -> int:
    fixed = [
        dim for name, value in inputs.items() if _kind(name) == "ids" for dim in list(value.shape or [])[1:]
    ]
    positions = longest_sample(model) or max_length
    return min([max_length, positions, *(dim for dim in fixed if isinstance(dim, int))])


def _pad_id(tokenizer: tokenizers.Tokenizer) -> int:
    for token in ("[PAD]", "<pad>", "<|endoftext|>"):
        found = tokenizer.token_to_id(token)
        if found is not None:
            return int(found)
    return 0


def _fixed(inputs: Mapping[str, ir.Value]) -> dict[str, tuple[int | None, ...]]:
    shapes = {name: value.shape for name, value in inputs.items() if value.shape is not None}
    sizes = {
        name: tuple(dim if isinstance(dim, int) else None for dim in shape) for name, shape in shapes.items()
    }
    return {name: shape for name, shape in sizes.items() if any(shape) or not shape}
