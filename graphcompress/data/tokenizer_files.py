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
    """Copy the files of :data:`TOKENIZER_FILES` that lie beside ``source`` into ``stage``."""
    for name in TOKENIZER_FILES if source else ():
        if (source.parent / name).is_file():  # type: ignore[union-attr]
            shutil.copyfile(source.parent / name, stage / name)  # type: ignore[union-attr]
