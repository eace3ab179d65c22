"""Texts whose answers lie at places in them: words with labels, and windows of a long text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import tokenizers

from graphcompress.data.samples import QUESTION

WORD_OF_TOKEN = "word of each token"
"""Column that is added to rows of words: for each token the number of its word, -1 for a special token."""

OFFSETS = "place of each token"
"""Column that is added to windows: for each token where it begins and ends in the text, None for tokens that
are not of the text."""

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
) -> tuple[list[tokenizers.Encoding], dict[str, list[Any]], list[bool]]:
    """Encodings of pairs, the second text in windows; the columns with a row for each window; what is cut.

    A window has room for ``longest`` tokens, half of which is left to the second text. The last of what comes
    back says for each pair whether its first text had to be cut for that.
    """
    room = longest - tokenizer.num_special_tokens_to_add(is_pair=True)
    most = room // 2
    firsts, cut = _cut(tokenizer, columns[names[0]], most)
    # The tokenizer panics where neighbours share as much as the first text leaves of a window. A text that is
    # cut may have a few tokens more than before, which are taken off.
    stride = max(0, min(WINDOW_STRIDE, longest // 3, room - most - 4))
    tokenizer.enable_truncation(longest, stride=stride, strategy="only_second")
    pairs = list(zip(firsts, columns[names[1]], strict=True))
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
    return [window for _, window in windows], {**found, QUESTION: rows, OFFSETS: places}, cut


def _cut(tokenizer: tokenizers.Tokenizer, texts: Sequence[str], most: int) -> tuple[list[str], list[bool]]:
    """``texts`` of at most ``most`` tokens each, and whether something of them was cut."""
    tokenizer.no_truncation()
    encodings = tokenizer.encode_batch(list(texts), add_special_tokens=False)
    ends = [each.offsets[most - 1][1] if len(each) > most else None for each in encodings]
    return [text[:end] for text, end in zip(texts, ends, strict=True)], [end is not None for end in ends]
