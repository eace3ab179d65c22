"""The files that lie beside a model: of its tokenizer, its feature extractor and how it generates."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "config.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "tokenizer.model",
    "spiece.model",
    "sentencepiece.bpe.model",
    "source.spm",
    "target.spm",
    "target_vocab.json",
    "added_tokens.json",
    "normalizer.json",
    "chat_template.jinja",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
)


def write_longest(folder: Path, tokens: int) -> None:
    """Let the tokenizer in ``folder`` cut texts to ``tokens``, where it says how long they may be.

    In ``tokenizer_config.json`` that is ``model_max_length``, in ``tokenizer.json`` the length of truncation.
    """
    for name, place in (("tokenizer_config.json", ()), ("tokenizer.json", ("truncation",))):
        path = folder / name
        settings = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
        held = settings.get(*place) if place else settings
        key = "max_length" if place else "model_max_length"
        if held and held.get(key, tokens) >= tokens:
            held[key] = tokens
            path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", encoding="utf-8")


def copy_tokenizer(source: Path | None, stage: Path) -> None:
    """Copy the tokenizer's files that lie beside ``source``, a file or a folder, into ``stage``."""
    if source is None:
        return
    folder = source if source.is_dir() else source.parent
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, stage / name)
