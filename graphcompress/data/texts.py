"""Texts and a tokenizer → feeds of a model."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import tokenizers

from graphcompress.analysis.linears import embeddings
from graphcompress.data.inputs import source_of
from graphcompress.data.lengths import longest_sample
from graphcompress.data.samples import Samples
from graphcompress.data.spans import encoded_windows, encoded_words
from graphcompress.errors import DataError, UsageError
from graphcompress.graph.model import Model
from graphcompress.plugin.task import MAX_LENGTH, WINDOW_TOKENS, Pair

_LOG = logging.getLogger(__name__)

TEXT_COLUMNS = (
    ("sentence1", "sentence2"),
    ("premise", "hypothesis"),
    ("question", "context"),
    ("question", "sentence"),
)
WORD_COLUMNS = ("tokens", "words")
"""Columns with a list of words for each row, which has labels of words."""

SINGLE_TEXT_COLUMNS = ("sentence", "text", "content", "review", "context")
PROMPT_COLUMNS = ("source", "prompt", "input", "document", "article", "question", *SINGLE_TEXT_COLUMNS)
"""What a model that writes is given."""


def samples_from_texts(
    path: Path,
    columns: dict[str, list[Any]],
    model: Model,
    inputs: Mapping[str, ir.Value],
    tokenizer: tokenizers.Tokenizer | None,
    pair: Pair,
    max_length: int | None,
) -> Samples:
    """Tokenize the text columns for ``inputs``, at most ``max_length`` tokens a sample.

    Raises:
        DataError: no texts, no tokenizer, or one of another model.
        UsageError: as :func:`check_room`.
    """
    texts, words = text_columns(columns), _words_column(columns)
    if not texts and not words:
        raise DataError(
            f"{path}: columns {sorted(columns)} are neither the model's inputs {sorted(inputs)} nor texts "
            f"(sentence, text, sentence1 + sentence2, …); rename the columns"
        )
    _check_texts(path, columns, texts)
    tokenizer = checked_tokenizer(path, tokenizer, model, inputs)
    in_windows = pair == "windows" and len(texts) == 2
    longest = _longest(model, inputs, max_length or (WINDOW_TOKENS if in_windows else MAX_LENGTH))
    check_room(tokenizer, longest, of_pair=len(texts) == 2 and pair != "separate")
    with _tokenizers(f"{path}: its texts cannot be tokenized"):
        # A tokenizer.json may ask for padding; samples are kept as short as they are and padded by the batch.
        tokenizer.no_padding()
        if in_windows:
            encodings, columns, cut = encoded_windows(tokenizer, columns, texts, longest)
        else:
            tokenizer.enable_truncation(longest)
            if words and not texts:
                encodings, columns = encoded_words(tokenizer, columns, words)
            else:
                encodings = tokenizer.encode_batch(_rows(columns, texts, pair))
            cut = [bool(encoding.overflowing) for encoding in encodings]
    warn_of_cut(path, cut, longest)
    feeds = [
        {name: _encoded(name, value, encoding) for name, value in inputs.items()} for encoding in encodings
    ]
    pad = {name: _pad_id(tokenizer) for name in inputs if _kind(name) == "ids"}
    return Samples(feeds, columns, pad, per_row=len(feeds) // len(next(iter(columns.values()))))


def check_room(tokenizer: tokenizers.Tokenizer, longest: int, *, of_pair: bool) -> None:
    """Refuse a length that special tokens fill: the tokenizer would cut nothing.

    Raises:
        UsageError: it is one.
    """
    special, texts = tokenizer.num_special_tokens_to_add(is_pair=of_pair), 2 if of_pair else 1
    if longest < special + texts:
        raise UsageError(
            f"{longest} tokens at most, of which {special} are special, are none of the texts; "
            f"give --max-length {special + texts} or more"
        )


def warn_of_cut(path: Path, are_cut: Sequence[bool], longest: int) -> None:
    """Say how many texts are cut, where some are: what is measured and learned is of their beginnings."""
    if any(are_cut):
        _LOG.warning(
            "%s: %s of %s texts are cut after %s tokens; --max-length reads more where the model can",
            path,
            f"{sum(are_cut):,}",
            f"{len(are_cut):,}",
            f"{longest:,}",
        )


def checked_tokenizer(
    path: Path, tokenizer: tokenizers.Tokenizer | None, model: Model, inputs: Mapping[str, ir.Value]
) -> tokenizers.Tokenizer:
    """``tokenizer``, which is there and belongs to ``model``.

    Raises:
        DataError: it is not, or does not.
    """
    if tokenizer is None:
        raise DataError(
            f"{path}: texts need a tokenizer; put tokenizer.json beside the model or give --tokenizer"
        )
    _check_vocabulary(tokenizer, model, inputs)
    return tokenizer


def _rows(columns: Mapping[str, Sequence[Any]], texts: Sequence[str], pair: Pair) -> list[Any]:
    """A text, or both texts of a pair, for each sample."""
    if len(texts) == 2 and pair == "joint":
        return list(zip(columns[texts[0]], columns[texts[1]], strict=True))
    return [columns[text][row] for row in range(len(columns[texts[0]])) for text in texts]


def _words_column(columns: Mapping[str, Sequence[Any]]) -> str:
    """The column whose rows are lists of words, or an empty text."""
    found = (name for name in WORD_COLUMNS if name in columns and isinstance(columns[name][0], (list, tuple)))
    return next(found, "")


def text_columns(columns: Mapping[str, Sequence[Any]]) -> tuple[str, ...]:
    """The columns that hold the texts of a row, two of them for a pair; none where there are no texts."""
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
    # In this order: token_type_ids and position_ids are ids by their names, too.
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


def find_tokenizer(tokenizer: str | Path | None, beside: Path | None) -> tokenizers.Tokenizer | None:
    """The tokenizer in a file or folder; without either, the one in the folder ``beside``, if there is one.

    Raises:
        DataError: there is none where it was said to be, or it cannot be read.
    """
    if tokenizer is None:
        file = beside / "tokenizer.json" if beside else None
        return _read_tokenizer(file) if file and file.is_file() else None
    path = Path(tokenizer)
    path = path / "tokenizer.json" if path.is_dir() else path
    if not path.is_file():
        raise DataError(f"{path}: no such tokenizer; give a tokenizer.json or a folder that holds one")
    return _read_tokenizer(path)


def _read_tokenizer(path: Path) -> tokenizers.Tokenizer:
    with _tokenizers(f"{path}: not a tokenizer.json"):
        return tokenizers.Tokenizer.from_file(str(path))


@contextlib.contextmanager
def _tokenizers(what: str) -> Iterator[None]:
    """Whatever the library says is a :class:`DataError` that begins with ``what``."""
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        raise
    # It raises bare Exception, and a panic of its Rust code is no Exception at all.
    except BaseException as error:
        said = (str(error) or type(error).__name__).splitlines()[0][:200]
        raise DataError(
            f"{what} ({said}); give the tokenizer that belongs to the model with --tokenizer"
        ) from error


def _check_vocabulary(tokenizer: tokenizers.Tokenizer, model: Model, inputs: Mapping[str, ir.Value]) -> None:
    size = max(tokenizer.get_vocab(with_added_tokens=True).values(), default=-1) + 1
    ids = {value for name, value in inputs.items() if _kind(name) == "ids"}
    for embedding in embeddings(model):
        # A table with more rows than tokens is common: many checkpoints round its size up.
        if source_of(embedding.indices) in ids and size > embedding.rows:
            raise DataError(
                f"the tokenizer has {size:,} tokens, the embedding {embedding.name!r} only "
                f"{embedding.rows:,} rows, so it is another model's; give the right one with --tokenizer"
            )


def _longest(model: Model, inputs: Mapping[str, ir.Value], max_length: int) -> int:
    fixed = [
        dim for name, value in inputs.items() if _kind(name) == "ids" for dim in list(value.shape or [])[1:]
    ]
    positions = longest_sample(model) or max_length
    return min([max_length, positions, *(dim for dim in fixed if isinstance(dim, int))])


def _pad_id(tokenizer: tokenizers.Tokenizer) -> int:
    # Tokenizers like GPT-2's have no token for padding; any id does, for the mask hides it.
    for token in ("[PAD]", "<pad>", "<|endoftext|>"):
        found = tokenizer.token_to_id(token)
        if found is not None:
            return int(found)
    return 0
