"""The files that a build reads: their hashes for the recipe, their size, the tokenizer beside the model."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from graphcompress.data.tokenizer_files import TOKENIZER_FILES
from graphcompress.files.reading.hashes import sha256
from graphcompress.graph.model import Model
from graphcompress.plugin.base import Named


def input_hashes(
    recipe: Mapping[str, Any],
    model: Model,
    teacher: Model | None = None,
    readers: Iterable[Named] = (),
) -> dict[str, str]:
    """Hashes of every file that the build or one of ``readers`` reads, by the path as it was given."""
    paths = [Path(path) for path in (recipe["data"], recipe["eval_data"], recipe["train"]) if path]
    paths += _model_files(recipe["model"], model)
    paths += _model_files(recipe["teacher"], teacher)
    if paths and recipe["tokenizer"]:
        given = Path(recipe["tokenizer"])
        paths += [given, *(given / name for name in TOKENIZER_FILES)]
    if recipe["model"]:
        paths += [Path(recipe["model"]).parent / name for name in TOKENIZER_FILES]
    for reader in readers:
        paths += map(Path, reader.files_read)
    return {path.as_posix(): sha256(path) for path in paths if path.is_file()}


def _model_files(given: str | None, model: Model | None) -> list[Path]:
    """Files that the model at ``given`` was read from: of a checkpoint's folder, or with external data."""
    if not given or model is None:
        return []
    path = Path(given)
    if path.is_dir():
        return [file for file in sorted(path.iterdir()) if not file.name.startswith(".")]
    folder = path.resolve().parent
    # Beside the path as it was given: an absolute one is found on no other machine.
    return [path, *(path.parent / os.path.relpath(file.resolve(), folder) for file in model.files[1:])]


def model_bytes(model: Model) -> int:
    """Bytes of the file that the model came from, with its external data; 0 without a file."""
    return sum(path.stat().st_size for path in model.files if path.is_file())


def folder_bytes(folder: Path) -> int:
    """Bytes of the model's files; the tokenizer, which is the same before and after, is not counted."""
    files = (path for path in folder.rglob("*") if path.is_file() and path.name not in TOKENIZER_FILES)
    return sum(path.stat().st_size for path in files)
