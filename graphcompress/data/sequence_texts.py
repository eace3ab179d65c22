"""Texts, recordings, pictures → feeds of a model that writes: what its parts read when they generate."""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import tokenizers

from graphcompress.data.features import features
from graphcompress.data.rows import HEARD_COLUMNS, REFERENCE_COLUMNS
from graphcompress.data.samples import Sample, Samples
from graphcompress.data.sequences import WRITTEN_TOKENS, Unroller, Written, sequence_samples
from graphcompress.data.teacher_forced import forced_samples
from graphcompress.data.texts import PROMPT_COLUMNS, warn_of_cut
from graphcompress.errors import DataError
from graphcompress.files.generation_config import decoder_start, read_generation_config
from graphcompress.files.parts import Part
from graphcompress.files.scratch import on_disk
from graphcompress.graph.model import Model
from graphcompress.graph.teacher_forced import encoder_of

_GOLDEN = (5**0.5 - 1) / 2
"""Multiples of the golden ratio fall everywhere between 0 and 1, however many there are."""


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

    The prompt is a text, or the path of a recording or a picture where the encoder reads no ids. A model
    without an encoder reads the prompt and, where there is one, the answer after it. With ``at_once`` the
    samples are for teacher forcing: nothing is run, and a row may lack its answer.

    Raises:
        DataError: no column of texts or files, a row that is none, or files that cannot be read.
    """
    # A tokenizer.json may ask for padding, whose tokens would be read as text here.
    tokenizer.no_padding()
    tokenizer.enable_truncation(max_length)
    encoder = encoder_of(model.parts)
    if encoder is None:
        prompts, answers = _texts_of(path, columns)
        given, replies = _encoded(tokenizer, prompts), _encoded(tokenizer, answers or [])
        pairs = list(zip(given.ids, replies.ids or [[]] * len(given.ids), strict=True))
        longer = [len(row) + len(reply) > max_length for row, reply in pairs]
        _warn_of_cut(path, max_length, given.cut, replies.cut, longer)
        written = [
            Written({}, np.array([*row, *reply][:max_length]), len(row) if reply else 1)
            for row, reply in pairs
        ]
    else:
        sources, given, answers = _sources(path, columns, model, encoder, tokenizer)
        start = _start(model)
        replies = _started(_encoded(tokenizer, answers or []), start)
        longer = [len(reply) > max_length for reply in replies.ids]
        _warn_of_cut(path, max_length, given.cut, replies.cut, longer)
        if at_once and not replies.ids:
            written = [Written(source, np.array(start), len(start)) for source in sources]
            return replace(forced_samples(model, written), columns=columns)
        written = _answered(model, sources, replies.ids, start, max_length)
        written = written if at_once else [_begun(each, row) for row, each in enumerate(written)]
    short = next((number for number, each in enumerate(written, 1) if len(each.tokens) < 2), None)
    if short is not None:
        raise DataError(f"{path}: row {short} has fewer than two tokens, so nothing comes after the first")
    made = forced_samples(model, written) if at_once else sequence_samples(model, written)
    return replace(made, columns=columns)


@dataclass(frozen=True)
class _Encoded:
    """Texts as tokens: the ids of each, and whether some of it was cut."""

    ids: list[list[int]] = field(default_factory=list)
    cut: list[bool] = field(default_factory=list)


def _encoded(tokenizer: tokenizers.Tokenizer, texts: Sequence[str]) -> _Encoded:
    encodings = tokenizer.encode_batch(list(texts))
    return _Encoded([each.ids for each in encodings], [bool(each.overflowing) for each in encodings])


def _started(replies: _Encoded, start: Sequence[int]) -> _Encoded:
    """Answers with ``start`` in front; tokenizers of speech models put it there themselves."""
    begun = (tuple(reply[: len(start)]) == tuple(start) for reply in replies.ids)
    ids = [reply if done else [*start, *reply] for reply, done in zip(replies.ids, begun, strict=True)]
    return replace(replies, ids=ids)


def _warn_of_cut(path: Path, max_length: int, *of_rows: list[bool]) -> None:
    """Say how many rows have a prompt or an answer that is cut; those of no texts have no entries."""
    warn_of_cut(path, [any(row) for row in itertools.zip_longest(*of_rows)], max_length)


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


def _texts_of(path: Path, columns: Mapping[str, Sequence[Any]]) -> tuple[list[str], list[str] | None]:
    """The prompts, and the answers to them where there are some.

    Raises:
        DataError: no column of texts, or a row that is none.
    """
    prompted = next((name for name in PROMPT_COLUMNS if name in columns), None)
    prompts = _texts(path, columns, PROMPT_COLUMNS)
    if prompts is None:
        raise DataError(
            f"{path}: columns {sorted(columns)} have no text for a model that writes; "
            f"name one of them {', '.join(PROMPT_COLUMNS[:4])} or text"
        )
    # A column ``text`` may be either, and a prompt is not its own answer.
    return prompts, _texts(path, columns, [name for name in REFERENCE_COLUMNS if name != prompted])


def _sources(
    path: Path,
    columns: Mapping[str, Sequence[Any]],
    model: Model,
    encoder: Part,
    tokenizer: tokenizers.Tokenizer,
) -> tuple[list[Sample], _Encoded, list[str] | None]:
    """What the encoder reads for each row, without the batch; the prompts; the answers, if there are some.

    Raises:
        DataError: rows that are neither what it reads nor what that is made from.
    """
    if encoder.input("ids") is not None:
        prompts, answers = _texts_of(path, columns)
        encoded = _encoded(tokenizer, prompts)
        return [_source(path, encoder, row) for row in encoded.ids], encoded, answers
    answers = _texts(path, columns, HEARD_COLUMNS)
    if len(encoder.inputs) != 1:
        raise DataError(
            f"{path}: the encoder reads {', '.join(value.name for value in encoder.inputs)}, which are not "
            "made from one file; give data with columns of these names"
        )
    (value,) = encoder.inputs
    given = columns.get(value.name)
    arrays = features(path, columns, value.name, model.source) if given is None else given
    return on_disk({value.name: np.asarray(array, value.dtype)} for array in arrays), _Encoded(), answers


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
    sources: Sequence[Sample],
    replies: Sequence[Sequence[int]],
    start: Sequence[int],
    max_length: int,
) -> list[Written]:
    """What the decoder reads for each of ``sources``: ``replies``, or where there are none what it writes."""
    if not replies:
        with Unroller(model) as unroller:
            return [unroller.written(source, start, min(WRITTEN_TOKENS, max_length)) for source in sources]
    return [
        Written(source, np.array(reply[:max_length]), len(start))
        for source, reply in zip(sources, replies, strict=True)
    ]


def _begun(written: Written, row: int) -> Written:
    """``written`` up to a token of its answer, another one in every row; the first row is whole.

    A step reads the last token. That of a whole answer is its end each time, which no step of generation
    reads: ranges that are calibrated on it alone fit no other token.
    """
    answered = len(written.tokens) - written.prompt
    left_out = int(row * _GOLDEN % 1.0 * answered)
    return replace(written, tokens=written.tokens[: len(written.tokens) - left_out])


def _start(model: Model) -> tuple[int, ...]:
    """The tokens that a decoder beside an encoder begins with, by the configuration beside the files.

    Raises:
        DataError: none says them.
    """
    own, configured = ({}, {}) if model.source is None else read_generation_config(model.source)
    found = decoder_start({**configured, **own})
    if not found:
        raise DataError(
            f"{model.source}: no config.json says with which token the decoder begins "
            "(decoder_start_token_id); put the one of the checkpoint there"
        )
    return found
