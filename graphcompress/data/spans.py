"""Texts whose answers lie at places in them: words with labels, and windows of a long text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

WORD_OF_TOKEN = "word of each token"
"""Column that is added to rows of words: for each token the number of its word, -1 for a special token."""

QUESTION, OFFSETS = "number of the question", "place of each token"
"""Columns that are added to windows: which row of the file a window is of; for each token where it begins and
ends in the text, None for tokens that are not of the text."""

WINDOW_STRIDE = 128
"""Tokens that two neighbouring windows share, as in SQuAD's recipe."""


def tells_a_span(ranks: Mapping[str, int]) -> bool:
    """Whether outputs of these names and ranks tell where an answer begins and ends: one number per token."""
    return all(any(part in name and ranks[name] == 2 for name in ranks) for part in ("start", "end"))


def encoded_words(
    tokenizer: tokenizers.Tokenizer, columns: Mapping[str, Sequence[Any]], name: str
) -> tuple[list[tokenizers.Encoding], dict[str, list[Any]]]:
    """Encodings of rows of words, and the columns with the word of each token."""
    encodings = tokenizer.encode_batch([list(words) for words in columns[name]], is_pretokenized=True)
    numbers = [[-1 if word is None else word for word in encoding.word_ids] for encoding in encodings]
    return encodings, {**{key: list(values) for key, values in columns.items()}, WORD_OF_TOKEN: numbers}


def encoded_windows(
    tokenizer: tokenizers.Tokenizer, columns: Mapping[str, Sequence[Any]], names: Sequence[str], longest: int
) -> tuple[list[tokenizers.Encoding], dict[str, list[Any]]]:
    """Encodings of pairs, the second text in windows, and the columns with a row for each window."""
    # The tokenizer panics where neighbours share as much as the question leaves of a short window.
    stride = min(WINDOW_STRIDE, longest // 3)
    tokenizer.enable_truncation(longest, stride=stride, strategy="only_second")
    pairs = list(zip(*(columns[name] for name in names), strict=True))
    whole = tokenizer.encode_batch(pairs)
    windows = [(row, window) for row, first in enumerate(whole) for window in (first, *first.overflowing)]
    rows = [row for row, _ in windows]
    found = {key: [values[row] for row in rows] for key, values in columns.items()}
    places = [
        [
            # Special tokens lie at 0:0, which would be the first letter of the text.
            place if side == 1 and place[1] > place[0] else None
            for place, side in zip(window.offsets, window.sequence_ids, strict=True)
        ]
        for _, window in windows
    ]
    return [window for _, window in windows], {**found, QUESTION: rows, OFFSETS: places}
