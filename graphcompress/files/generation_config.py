"""generation_config.json and config.json: what a checkpoint says about how it generates."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from graphcompress.errors import InvalidModelError

FILES = ("generation_config.json", "config.json")
"""Where settings stand, the first file first; older checkpoints keep all of them in config.json."""


def read_generation_config(folder: Path) -> tuple[Mapping[str, Any], Mapping[str, Any]]:
    """What each of ``FILES`` says; a file that is not there says nothing.

    Raises:
        InvalidModelError: a file that does not read.
    """
    own, model = (_read(folder / name) for name in FILES)
    return own, model


def _read(path: Path) -> Mapping[str, Any]:
    if not path.is_file():
        return {}
    try:
        found = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise InvalidModelError(f"{path}: cannot be read as JSON ({error}); copy it again") from error
    if not isinstance(found, dict):
        raise InvalidModelError(f"{path}: holds no settings but {type(found).__name__}; copy it again")
    return found


def decoder_start(said: Mapping[str, Any]) -> tuple[int, ...]:
    """Ids that a decoder beside an encoder begins with: the start, then what speech models are told."""
    first = said.get("decoder_start_token_id")
    if first is None:
        first = said.get("bos_token_id")
    # A generation_config.json alone does not say whether there is an encoder; a start for the decoder tells.
    if first is None or not said.get("is_encoder_decoder", "decoder_start_token_id" in said):
        return ()
    task, language = said.get("task"), said.get("language")
    forced = said.get("forced_decoder_ids") or ()
    told = [said["lang_to_id"].get(language, said["lang_to_id"].get(f"<|{language}|>"))] if language else []
    told += [said["task_to_id"][task]] if task else []
    if not told:
        told = [token for _, token in forced if token is not None]
    timeless = said.get("no_timestamps_token_id")
    if timeless is not None and timeless not in told:
        told.append(timeless)
    return (first, *told)


def token_ids(said: Mapping[str, Any], name: str) -> tuple[int, ...]:
    """One id or a list of ids as a tuple."""
    found: int | Sequence[int] | None = said.get(name)
    if found is None:
        return ()
    return (found,) if isinstance(found, int) else tuple(found)
