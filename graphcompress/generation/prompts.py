"""Rows of a data file → what a model that writes is given."""

from __future__ import annotations

import wave
from pathlib import Path
from typing import Any

import numpy as np

from graphcompress.data.samples import Samples
from graphcompress.data.tables import Columns, read_columns
from graphcompress.data.texts import PROMPT_COLUMNS
from graphcompress.errors import DataError
from graphcompress.generation.generator import Generator, Prompt
from graphcompress.plugin.extras import needs_torch

AUDIO_COLUMNS = ("audio", "file", "path")
"""Columns with the path of a .wav file, from the folder of the data file."""

_FULL = 32768.0
"""A sample of 16 bits counts to this, which is 1.0 for a feature extractor."""


def prompt_samples(path: Path, generator: Generator) -> Samples:
    """The rows of ``path`` as prompts of ``generator``, with all columns beside them.

    Columns named like the inputs of the encoder are taken as they are; of audio the feature extractor makes
    them; texts are tokenized.

    Raises:
        DataError: no column that the model can be given, or texts that its tokenizer does not take.
    """
    columns = read_columns(path)
    return Samples(_prompts(path, columns, generator), columns)


def _prompts(path: Path, columns: Columns, generator: Generator) -> list[Prompt]:
    inputs = [port for port in generator.parts[0].inputs if port.kind in ("ids", "other")]
    if inputs and all(port.name in columns for port in inputs):
        rows = zip(*(columns[port.name] for port in inputs), strict=True)
        return [
            {port.name: np.asarray(value, port.dtype) for port, value in zip(inputs, row, strict=True)}
            for row in rows
        ]
    if generator.parts[0].input("ids") is not None:
        return generator.prompts(_texts(path, columns))
    audio = next((name for name in AUDIO_COLUMNS if name in columns), None)
    if audio is None or len(inputs) != 1:
        raise DataError(
            f"{path}: columns {sorted(columns)} are neither the model's inputs "
            f"{[port.name for port in inputs]} nor audio ({', '.join(AUDIO_COLUMNS)}); rename the columns"
        )
    extractor = _extractor(generator.parts[0].path.parent)
    return [{inputs[0].name: _features(extractor, path.parent / str(file))} for file in columns[audio]]


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


def _extractor(folder: Path) -> Any:  # noqa: ANN401 - a feature extractor of transformers
    needs_torch("reading of audio", "transformers")
    import transformers

    # On the hub the ONNX files often lie in a folder of their own, below the configuration.
    places = [place for place in (folder, folder.parent) if (place / "preprocessor_config.json").is_file()]
    if not places:
        raise DataError(
            f"{folder}: audio needs a feature extractor; put preprocessor_config.json beside the model"
        )
    return transformers.AutoFeatureExtractor.from_pretrained(places[0])


def _features(extractor: Any, path: Path) -> np.ndarray:  # noqa: ANN401 - as _extractor
    """What the encoder reads of a recording of one or more channels, 16 bits, at the extractor's rate."""
    try:
        with wave.open(str(path), "rb") as file:
            rate, channels, width = file.getframerate(), file.getnchannels(), file.getsampwidth()
            data = file.readframes(file.getnframes())
    except (OSError, EOFError, wave.Error) as error:
        raise DataError(f"{path}: cannot be read as a .wav file ({error})") from error
    if rate != extractor.sampling_rate or width != 2:
        raise DataError(
            f"{path}: has {rate} samples a second of {8 * width} bits, the model hears "
            f"{extractor.sampling_rate} of 16; convert it"
        )
    heard = np.frombuffer(data, np.int16).reshape(-1, channels).mean(1) / _FULL
    found = extractor(heard.astype(np.float32), sampling_rate=rate, return_tensors="np")
    return np.asarray(found[extractor.model_input_names[0]][0])
