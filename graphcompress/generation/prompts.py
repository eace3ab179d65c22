"""Rows of a data file → what a model that writes is given."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import numpy as np

from graphcompress.data.features import features
from graphcompress.data.samples import Samples
from graphcompress.data.tables import Columns, read_columns
from graphcompress.data.texts import PROMPT_COLUMNS
from graphcompress.errors import DataError
from graphcompress.files.scratch import on_disk
from graphcompress.generation.generator import Generator, Prompt


def prompt_samples(path: Path, generator: Generator) -> Samples:
    """The rows of ``path`` as prompts of ``generator``, with all columns beside them.

    Columns named like the inputs of the encoder are taken as they are; of recordings and pictures the feature
    extractor makes them; texts are tokenized.

    Raises:
        DataError: no column that the model can be given, or texts that its tokenizer does not take.
    """
    columns = read_columns(path)
    return Samples(on_disk(_prompts(path, columns, generator)), columns)


def _prompts(path: Path, columns: Columns, generator: Generator) -> Iterable[Prompt]:
    inputs = [port for port in generator.parts[0].inputs if port.kind in ("ids", "other")]
    if inputs and all(port.name in columns for port in inputs):
        rows = zip(*(columns[port.name] for port in inputs), strict=True)
        return (
            {port.name: np.asarray(value, port.dtype) for port, value in zip(inputs, row, strict=True)}
            for row in rows
        )
    if generator.parts[0].input("ids") is not None:
        return generator.prompts(_texts(path, columns))
    if len(inputs) != 1:
        raise DataError(
            f"{path}: columns {sorted(columns)} are not the model's inputs "
            f"{[port.name for port in inputs]}; rename the columns"
        )
    name, folder = inputs[0].name, generator.parts[0].path.parent
    return ({name: array} for array in features(path, columns, name, folder))


def _texts(path: Path, columns: Columns) -> list[str]:
    name = next((name for name in PROMPT_COLUMNS if name in columns), None)
    if name is None:
        raise DataError(
            f"{path}: columns {sorted(columns)} hold no text for the model ({', '.join(PROMPT_COLUMNS)}); "
            "rename the columns"
        )
    for row, text in enumerate(columns[name], 1):
        if not isinstance(text, str):
            raise DataError(
                f"{path}: column {name!r} row {row} is not a text but {text!r:.60}; correct that row"
            )
    return columns[name]
