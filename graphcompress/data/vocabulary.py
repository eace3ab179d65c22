"""The tokens of a tokenizer.json, and the same file without those that are not kept.

Ids stay: a token that is dropped leaves a hole, so that configurations, labels and samples stay as they are.
"""

from __future__ import annotations

import json
import string
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from graphcompress.errors import DataError

FILE = "tokenizer.json"
BYTES = frozenset(f"<0x{number:02X}>" for number in range(256))
"""Tokens that SentencePiece falls back to, one for each byte."""

_HOLE = "\ue000{}"
"""What stands in a list of pieces for one that is gone: a character of private use, which no text has."""

_NEVER = -1e6
"""The score of a piece that no segmentation has."""


@dataclass(frozen=True)
class Vocabulary:
    """The tokens of a tokenizer of one of the kinds WordPiece, BPE, Unigram and WordLevel.

    Attributes:
        settings: the content of the file.
    """

    settings: Mapping[str, Any]

    @classmethod
    def beside(cls, folder: Path) -> Vocabulary | None:
        """That of the tokenizer.json in ``folder``; None where there is none of a kind that is known.

        Raises:
            DataError: the file is damaged.
        """
        path = folder / FILE
        if not path.is_file():
            return None
        try:
            settings = json.loads(path.read_text(encoding="utf-8"))
            found = cls(settings)
            return found if found.kind in _KINDS and found.ids else None
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            raise DataError(f"{path}: no tokenizer can be read from it ({error}); save it again") from error

    @property
    def kind(self) -> str:
        """WordPiece, BPE, Unigram or WordLevel; older files do not say it."""
        model = self.settings["model"]
        if "type" in model:
            return str(model["type"])
        if isinstance(model["vocab"], list):
            return "Unigram"
        words = {"max_input_chars_per_word", "continuing_subword_prefix"} & model.keys()
        return "BPE" if "merges" in model else "WordPiece" if words else "WordLevel"

    @property
    def ids(self) -> dict[str, int]:
        """Token → id, added ones as well."""
        vocab = self.settings["model"]["vocab"]
        pieces = (
            {piece: index for index, (piece, _) in enumerate(vocab)} if isinstance(vocab, list) else vocab
        )
        return {**pieces, **{item["content"]: item["id"] for item in self._added}}

    @property
    def unknown(self) -> int | None:
        """The id of what stands for text that has no tokens."""
        model = self.settings["model"]
        if self.kind == "Unigram":
            index = model.get("unk_id")
            return None if index is None else int(index)
        return self.ids.get(model.get("unk_token") or "")

    @property
    def _added(self) -> list[Mapping[str, Any]]:
        return list(self.settings.get("added_tokens") or ())

    def closed(self, kept: Iterable[int]) -> frozenset[int]:
        """``kept`` and what has to stay with it.

        Special tokens stay, and tokens of bytes; a token keeps the merges that build it; and so that other
        text falls into smaller pieces, the characters of the kept tokens and those of ASCII stay.
        """
        ids = self.ids
        names = {index: token for token, index in ids.items()}
        wanted = {names[index] for index in kept if index in names}
        wanted |= {item["content"] for item in self._added} | BYTES
        wanted |= {names[self.unknown]} if self.unknown in names else set()
        wanted |= set(_KINDS[self.kind](self.settings["model"], wanted, ids))
        return frozenset(ids[token] for token in wanted if token in ids)

    def without(self, kept: Collection[int]) -> dict[str, Any]:
        """The content of the file with the tokens of ``kept`` alone."""
        model = dict(self.settings["model"])
        vocab = model["vocab"]
        if isinstance(vocab, list):
            model["vocab"] = [
                item if index in kept else [_HOLE.format(index), _NEVER] for index, item in enumerate(vocab)
            ]
        else:
            # Added tokens that are not in it are numbered anew when the file is read, behind all others, and
            # those are fewer now.
            added = {item["content"]: item["id"] for item in self._added}
            model["vocab"] = {token: index for token, index in vocab.items() if index in kept} | added
        if "merges" in model:
            prefix = model.get("continuing_subword_prefix") or ""
            built = ((merge, _built(merge, prefix)) for merge in model["merges"])
            model["merges"] = [
                merge for merge, parts in built if all(part in model["vocab"] for part in parts)
            ]
        return {**self.settings, "model": model}


def _built(merge: str | list[str], prefix: str) -> tuple[str, str, str]:
    """The two parts of a merge, and what they become: the second one loses the ``prefix`` inside words."""
    left, right = merge.split(" ") if isinstance(merge, str) else merge
    return left, right, left + right.removeprefix(prefix)


def _characters(tokens: Iterable[str]) -> set[str]:
    return {character for token in tokens for character in token} | set(string.printable)


def _pieces(model: Mapping[str, Any], wanted: set[str], ids: Mapping[str, int]) -> Iterator[str]:
    """Of WordPiece: every character, at the beginning of a word and inside."""
    prefix = model.get("continuing_subword_prefix") or "##"
    for character in _characters(wanted):
        yield from (character, prefix + character)


def _units(model: Mapping[str, Any], wanted: set[str], ids: Mapping[str, int]) -> Iterator[str]:
    """Of BPE: all single characters, which stand for bytes or begin merges, and the parts of every merge."""
    prefix, suffix = model.get("continuing_subword_prefix") or "", model.get("end_of_word_suffix") or ""
    for token in ids:
        if len(token.removeprefix(prefix).removesuffix(suffix)) <= 1:
            yield token
    parts: dict[str, list[str]] = {}
    for merge in model["merges"]:
        left, right, token = _built(merge, prefix)
        parts.setdefault(token, []).extend((left, right))
    pending, seen = list(wanted), set(wanted)
    while pending:
        for part in parts.get(pending.pop(), ()):
            if part not in seen:
                seen.add(part)
                pending.append(part)
                yield part


def _letters(model: Mapping[str, Any], wanted: set[str], ids: Mapping[str, int]) -> Iterator[str]:
    """Of Unigram: every character."""
    yield from _characters(wanted)
    yield "▁"


def _nothing(model: Mapping[str, Any], wanted: set[str], ids: Mapping[str, int]) -> Iterator[str]:
    """Of WordLevel: no token is made of others."""
    yield from ()


_KINDS: dict[str, Callable[[Mapping[str, Any], set[str], Mapping[str, int]], Iterator[str]]] = {
    "BPE": _units,
    "Unigram": _letters,
    "WordLevel": _nothing,
    "WordPiece": _pieces,
}
"""Kind of a tokenizer → what it needs beside the tokens that are kept."""


def write_without(folder: Path, kept: Collection[int]) -> bool:
    """Take the tokens that are not ``kept`` from the tokenizer.json in ``folder``; whether there is one."""
    vocabulary = Vocabulary.beside(folder)
    if vocabulary is None:
        return False
    text = json.dumps(vocabulary.without(kept), ensure_ascii=False, indent=2)
    (folder / FILE).write_text(text + "\n", encoding="utf-8")
    return True
