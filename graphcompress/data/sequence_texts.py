"""Texts → feeds of a model that writes: what its parts read when they generate, with past of their own."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from graphcompress.data.rows import REFERENCE_COLUMNS
from graphcompress.data.samples import Samples
from graphcompress.data.sequences import WRITTEN_TOKENS, Unroller, Written, sequence_samples
from graphcompress.data.teacher_forced import forced_samples
from graphcompress.data.texts import PROMPT_COLUMNS
from graphcompress.errors import DataError
from graphcompress.files.parts import Part
from graphcompress.graph.model import Model


def samples_of_sequences(
    path: Path,
    columns: Mapping[str, Sequence[Any]],
    model: Model,
    tokenizer: tokenizers.Tokenizer,
    max_length: int,
    *,
    at_once: bool = False,
) -> Samples:
    """A sample of all parts for each row: the prompt is encoded, the decoder reads the answer.

    A model without an encoder reads the prompt and, where there is one, the answer after it. With ``at_once``
    the samples are for teacher forcing: nothing is run, and a row may lack its answer.

    Raises:
        DataError: no column of texts, a row that is no text, or an encoder that does not read token ids.
    """
    prompted = next((name for name in PROMPT_COLUMNS if name in columns), None)
    prompts = _texts(path, columns, PROMPT_COLUMNS)
    # A column ``text`` may be either, and a prompt is not its own answer.
    answers = _texts(path, columns, [name for name in REFERENCE_COLUMNS if name != prompted])
    if prompts is None:
        raise DataError(
            f"{path}: columns {sorted(columns)} have no text for a model that writes; "
            f"name one of them {', '.join(PROMPT_COLUMNS[:4])} or text"
        )
    # A tokenizer.json may ask for padding, whose tokens would be read as text here.
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    ids = [encoding.ids for encoding in tokenizer.encode_batch(prompts)]
    replies = None if answers is None else [each.ids for each in tokenizer.encode_batch(answers)]
    encoder = next((part for part in model.parts if part.role == "encoder"), None)
    if encoder is None:
        written = [
            Written({}, np.array([*row, *reply][:max_length]), len(row) if reply else 1)
            for row, reply in zip(ids, replies or [[]] * len(ids), strict=True)
        ]
    else:
        sources = [_source(path, encoder, row) for row in ids]
        if at_once and replies is None:
            written = [Written(source, np.array([_start(model)])) for source in sources]
            return dataclasses.replace(forced_samples(model, written), columns=columns)
        written = _answered(model, sources, replies, _start(model), max_length)
    short = next((number for number, each in enumerate(written, 1) if len(each.tokens) < 2), None)
    if short is not None:
        raise DataError(f"{path}: row {short} has fewer than two tokens, so nothing comes after the first")
    made = forced_samples(model, written) if at_once else sequence_samples(model, written)
    return dataclasses.replace(made, columns=columns)


def _texts(path: Path, columns: Mapping[str, Sequence[Any]], names: Sequence[str]) -> list[str] | None:
    """The texts of the first of ``names`` that there is; of several answers to a row the first."""
    name = next((name for name in names if name in columns), None)
    if name is None:
        return None
    found = [entry[0] if isinstance(entry, (list, tuple)) and entry else entry for entry in columns[name]]
    wrong = next((number for number, text in enumerate(found, 1) if not isinstance(text, str)), None)
    if wrong is not None:
        raise DataError(f"{path}: column {name!r} row {wrong} is not a text; correct that row")
    return found


def _source(path: Path, encoder: Part, ids: Sequence[int]) -> dict[str, np.ndarray]:
    """What the encoder reads, without the batch."""
    feed = {}
    for value in encoder.inputs:
        if value.kind not in ("ids", "mask"):
            raise DataError(
                f"{path}: the encoder reads {value.name!r}, which is not made from text; "
                "give data with a column of that name"
            )
        feed[value.name] = np.asarray(ids if value.kind == "ids" else np.ones(len(ids)), value.dtype)
    return feed


def _answered(
    model: Model,
    sources: Sequence[Mapping[str, np.ndarray]],
    replies: Sequence[Sequence[int]] | None,
    start: int,
    max_length: int,
) -> list[Written]:
    """What the decoder reads for each of ``sources``: the answers of the data, or those of the model."""
    if replies is not None:
        rows = [np.array([start, *reply][:max_length]) for reply in replies]
        return [Written(source, row) for source, row in zip(sources, rows, strict=True)]
    with Unroller(model) as unroller:
        return [unroller.written(source, [start], min(WRITTEN_TOKENS, max_length)) for source in sources]


def _start(model: Model) -> int:
    """The token that a decoder beside an encoder begins with, by the configuration beside the files.

    Raises:
        DataError: none says it.
    """
    for name in ("generation_config.json", "config.json"):
        file = None if model.source is None else model.source / name
        if file is not None and file.is_file():
            found = json.loads(file.read_text(encoding="utf-8")).get("decoder_start_token_id")
            if isinstance(found, int):
                return found
    raise DataError(
        f"{model.source}: no config.json says with which token the decoder begins (decoder_start_token_id); "
        "put the one of the checkpoint there"
    )
