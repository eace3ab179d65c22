"""The tokenizer's files that lie beside a model."""

from __future__ import annotations

import shutil
from pathlib import Path

TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "special_tokens_map.json",
    "config.json",
    "vocab.txt",
)


def copy_tokenizer(source: Path | None, stage: Path) -> None:
    """Copy the tokenizer's files that lie beside ``source`` into ``stage``."""
    for name in TOKENIZER_FILES if source else ():
        if (source.parent / name).is_file():  # type: ignore[union-attr]
            shutil.copyfile(source.parent / name, stage / name)  # type: ignore[union-attr]
