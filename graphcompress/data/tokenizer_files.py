"""The files that lie beside a model: of its tokenizer, its feature extractor and how it generates."""

from __future__ import annotations

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


def copy_tokenizer(source: Path | None, stage: Path) -> None:
    """Copy the tokenizer's files that lie beside ``source``, a file or a folder, into ``stage``."""
    if source is None:
        return
    folder = source if source.is_dir() else source.parent
    for name in TOKENIZER_FILES:
        if (folder / name).is_file():
            shutil.copyfile(folder / name, stage / name)
