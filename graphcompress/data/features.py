"""Recordings and pictures → what a model reads of them, by the feature extractor beside it."""

from __future__ import annotations

import wave
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from graphcompress.errors import DataError
from graphcompress.plugin.extras import needs, needs_torch

PICTURE_INPUT = "pixel_values"
"""What models of pictures call their input; all others that read no text hear."""

AUDIO_COLUMNS = ("audio", "file", "path")
"""Columns with the path of a .wav file, from the folder of the data file."""

PICTURE_COLUMNS = ("image", "file", "path")
"""Columns with the path of a picture, from the folder of the data file."""

CONFIGURATION = "preprocessor_config.json"

_FULL = 32768.0
"""A sample of 16 bits counts to this, which is 1.0 for a feature extractor."""


def file_columns(name: str) -> tuple[str, ...]:
    """Columns that may hold the paths of the files behind the input ``name``."""
    return PICTURE_COLUMNS if name == PICTURE_INPUT else AUDIO_COLUMNS


def features(
    path: Path, columns: Mapping[str, Sequence[Any]], name: str, folder: Path | None
) -> Iterator[np.ndarray]:
    """What the input ``name`` is given for each row of the data file ``path``, without the batch.

    The feature extractor (or image processor) whose configuration lies in ``folder``, or above it, makes
    them, one after the other.

    Raises:
        DataError: no column of paths, no configuration, or a file that cannot be read.
        MissingExtraError: PyTorch and transformers, or Pillow for pictures, are not installed.
    """
    seen = name == PICTURE_INPUT
    column = next((each for each in file_columns(name) if each in columns), None)
    if column is None:
        raise DataError(
            f"{path}: columns {sorted(columns)} are neither the model's input {name!r} nor "
            f"{'pictures' if seen else 'audio'} ({', '.join(file_columns(name))}); rename the columns"
        )
    extractor = _extractor(folder, seen=seen)
    read = _seen if seen else _heard
    for row, file in enumerate(columns[column], 1):
        if not isinstance(file, str):
            raise DataError(
                f"{path}: column {column!r} row {row} is not the path of a file; correct that row"
            )
        yield read(extractor, path.parent / file)


def _extractor(folder: Path | None, *, seen: bool) -> Any:  # noqa: ANN401 - an extractor of transformers
    what = "pictures" if seen else "recordings"
    needs_torch(f"reading of {what}", "transformers")
    if seen:
        needs("reading of pictures", "pictures", "PIL")
    # On the hub the ONNX files often lie in a folder of their own, below the configuration.
    places = [] if folder is None else [folder, folder.parent]
    place = next((place for place in places if (place / CONFIGURATION).is_file()), None)
    if place is None:
        raise DataError(f"{folder}: {what} need a feature extractor; put {CONFIGURATION} beside the model")
    import transformers

    kind = transformers.AutoImageProcessor if seen else transformers.AutoFeatureExtractor
    try:
        return kind.from_pretrained(place)
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = str(error).partition("\n")[0][:200]
        raise DataError(
            f"{place / CONFIGURATION}: makes no feature extractor ({problem}); copy it again"
        ) from error


def _heard(extractor: Any, path: Path) -> np.ndarray:  # noqa: ANN401 - as _extractor
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
    # Whisper's extractor cuts what is longer off in silence.
    most = getattr(extractor, "n_samples", None)
    if most is not None and len(heard) > most:
        raise DataError(
            f"{path}: lasts {len(heard) / rate:.1f} s, the model hears {most / rate:.1f} s at once; cut it"
        )
    found = extractor(heard.astype(np.float32), sampling_rate=rate, return_tensors="np")
    return np.asarray(found[extractor.model_input_names[0]][0])


def _seen(processor: Any, path: Path) -> np.ndarray:  # noqa: ANN401 - as _extractor
    """What the encoder reads of a picture, [channels, height, width]."""
    from PIL import Image

    try:
        with Image.open(path) as picture:
            colours = picture.convert("RGB")
    except (OSError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as a picture ({error})") from error
    return np.asarray(processor(colours, return_tensors="np")[PICTURE_INPUT][0])
