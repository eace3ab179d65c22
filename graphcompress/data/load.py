"""Samples: rows of a data file (and a tokenizer) → feeds of a model."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import embeddings
from graphcompress.data.lengths import longest_sample, total_length
from graphcompress.data.samples import Sample, Samples
from graphcompress.data.tables import read_columns
from graphcompress.data.texts import find_tokenizer, samples_from_texts
from graphcompress.errors import DataError
from graphcompress.graph.model import Model
from graphcompress.plugin.task import Pair

__all__ = ["Sample", "Samples", "load_samples", "synthetic_samples"]

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
        samples = samples_from_texts(
            path, columns, model, inputs, find_tokenizer(tokenizer, model), pair, max_length
        )
    _refuse_empty(path, samples)
    return dataclasses.replace(samples, fixed=_fixed(inputs))


def _refuse_empty(path: Path, samples: Samples) -> None:
    """Some inputs may be empty, such as the past of a first step; a sample that has nothing else is none."""
    for index, feed in enumerate(samples.feeds):
        if not any(array.size for array in feed.values()):
            raise DataError(
                f"{path}: row {index // samples.per_row + 1} is empty: it has no token; remove that row"
            )


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
        joined = dict.fromkeys(lengths_of_one_mask(model), total)
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


def lengths_of_one_mask(model: Model) -> list[str]:
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
        return np.asarray(rng.standard_normal(shape), dtype)
    if "mask" in name:
        return np.ones(shape, dtype)
    if "position" in name:
        return np.broadcast_to(np.arange(shape[-1] if shape else 1), shape).astype(dtype)
    if "type" in name or "segment" in name:
        return np.zeros(shape, dtype)
    return np.asarray(rng.integers(0, rows or 2, shape), dtype)


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


def _fixed(inputs: Mapping[str, ir.Value]) -> dict[str, tuple[int | None, ...]]:
    shapes = {name: value.shape for name, value in inputs.items() if value.shape is not None}
    sizes = {
        name: tuple(dim if isinstance(dim, int) else None for dim in shape) for name, shape in shapes.items()
    }
    return {name: shape for name, shape in sizes.items() if any(shape) or not shape}
