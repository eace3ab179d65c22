"""Samples: rows of a data file (and a tokenizer) → feeds of a model."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir

from graphcompress.data.agreed_lengths import check_lengths
from graphcompress.data.features import features, file_columns
from graphcompress.data.inputs import batch_axes, batch_first, fixed_sizes, inputs_of, output_ranks
from graphcompress.data.lengths import longest_sample
from graphcompress.data.samples import Sample, Samples
from graphcompress.data.sequence_texts import samples_of_sequences
from graphcompress.data.sequences import pasts
from graphcompress.data.spans import tells_a_span
from graphcompress.data.tables import read_columns
from graphcompress.data.teacher_forced import forced
from graphcompress.data.texts import check_room, checked_tokenizer, find_tokenizer, samples_from_texts
from graphcompress.errors import DataError
from graphcompress.files.scratch import on_disk
from graphcompress.graph.model import Model
from graphcompress.graph.teacher_forced import teacher_forced
from graphcompress.plugin.task import MAX_LENGTH, Pair, check_max_length

__all__ = ["Sample", "Samples", "load_samples"]


def load_samples(
    path: str | Path,
    model: Model,
    *,
    tokenizer: str | Path | None = None,
    pair: Pair | None = None,
    limit: int | None = None,
    max_length: int | None = None,
    at_once: bool = False,
) -> Samples:
    """Read ``path`` (.jsonl, .csv, .tsv, .parquet, .npz, the text ones also .gz) as samples for ``model``.

    Columns named like the model's inputs are used as they are; otherwise text columns are tokenized with
    ``tokenizer`` (a ``tokenizer.json``, or a folder that holds one; found by itself beside the model).
    ``pair="joint"`` encodes the two texts of a pair as one sample, ``"separate"`` as two, ``"windows"`` the
    first one with each window of the second; None is windows where the outputs tell the place of an answer,
    else joint. Texts of more than ``max_length`` tokens are cut, and counted in a warning. Lists of words
    (``tokens``) are tokenized word by word. What a model reads of recordings (.wav) and pictures is made by
    the feature extractor beside it. The names of the classes are those of the ``config.json`` beside the
    model. Of a model that writes, ``at_once`` gives samples for teacher forcing
    (:mod:`graphcompress.data.teacher_forced`), for which nothing is run.

    Raises:
        DataError: no such file, no usable columns, or a tokenizer that does not fit the model.
        UsageError: a ``max_length`` that is no number of tokens, or leaves no room for a text.
    """
    check_max_length(max_length)
    path = Path(path)
    columns = {name: values[:limit] for name, values in read_columns(path).items()}
    inputs = inputs_of(model)
    at_once = at_once and bool(model.parts)
    if at_once and not set(inputs) <= set(columns):
        read = inputs_of(teacher_forced(model))
        inputs = read if set(read) <= set(columns) else inputs
    if set(inputs) <= set(columns):
        samples = check_lengths(_from_arrays(path, columns, inputs), model)
    else:
        found = find_tokenizer(tokenizer, _folder(model))
        sensed = [name for name, value in inputs.items() if value.dtype and value.dtype.is_floating_point()]
        if model.parts:
            known = checked_tokenizer(path, found, model, inputs)
            longest = max_length or MAX_LENGTH
            longest = min(longest, longest_sample(model) or longest)
            check_room(known, longest, of_pair=False)
            samples = samples_of_sequences(path, columns, model, known, longest, at_once=at_once)
        elif len(sensed) == len(inputs) == 1 and set(file_columns(sensed[0])) & set(columns):
            arrays = features(path, columns, sensed[0], _folder(model))
            samples = Samples(on_disk({sensed[0]: array} for array in arrays), columns)
        else:
            fed = pair or ("windows" if tells_a_span(output_ranks(model)) else "joint")
            samples = samples_from_texts(path, columns, model, inputs, found, fed, max_length)
    _refuse_empty(path, samples)
    names = _class_names(model)
    if at_once:
        return dataclasses.replace(forced(model, samples), names=names)
    return dataclasses.replace(
        samples, fixed=fixed_sizes(inputs), axes=batch_axes(inputs), names=names, past=pasts(model.parts)
    )


def _folder(model: Model) -> Path | None:
    """Where the tokenizer and the configuration of ``model`` lie."""
    source = model.source
    return source if source is None or source.is_dir() else source.parent


def _class_names(model: Model) -> tuple[str, ...]:
    """Names of the classes by the config.json beside the model; empty where it says none."""
    folder = _folder(model)
    file = folder / "config.json" if folder else None
    if file is None or not file.is_file():
        return ()
    try:
        found = json.loads(file.read_text(encoding="utf-8")).get("id2label") or {}
        # Keys of JSON are texts, and "10" comes before "2".
        return tuple(str(name) for _, name in sorted((int(number), name) for number, name in found.items()))
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DataError(f"{file}: its id2label cannot be read ({error}); copy it again") from error


def _refuse_empty(path: Path, samples: Samples) -> None:
    """Some inputs may be empty, such as the past of a first step; a sample that has nothing else is none."""
    for index, feed in enumerate(samples.feeds):
        if not any(array.size for array in feed.values()):
            raise DataError(
                f"{path}: row {index // samples.per_row + 1} is empty: it has no token; remove that row"
            )


# ---- rows to feeds


def _from_arrays(path: Path, columns: dict[str, list[Any]], inputs: Mapping[str, ir.Value]) -> Samples:
    feeds = on_disk(
        {name: _array(path, name, index, columns[name][index], value) for name, value in inputs.items()}
        for index in range(len(next(iter(columns.values()))))
    )
    return Samples(feeds, {name: values for name, values in columns.items() if name not in inputs})


def _array(path: Path, name: str, index: int, entry: object, value: ir.Value) -> np.ndarray:
    where = f"{path}: column {name!r} row {index + 1}"
    try:
        array = np.asarray(entry, dtype=value.dtype.numpy() if value.dtype else None)
    except (ValueError, TypeError, OverflowError) as error:
        raise DataError(
            f"{where} is not an array of {value.dtype}, which input {name!r} takes ({error})"
        ) from error
    sizes = batch_first(value)[1:]
    if value.shape is not None and not array.size and array.ndim < len(sizes):
        # Nested lists of nothing, [[], []], do not say how large what is not there would be.
        array = array.reshape([size if isinstance(size, int) else 0 for size in sizes])
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
