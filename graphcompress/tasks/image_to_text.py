"""image-to-text: a caption, or the text in a picture; its metrics are those of text2text-generation."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from graphcompress.plugin.task import WritingTask


@dataclass(frozen=True)
class ImageToText(WritingTask):
    """One text for each picture, a file or the numbers that the encoder reads."""

    name: ClassVar[str] = "image-to-text"
    prompts: ClassVar[tuple[str, ...]] = ("image", "file", "path", "pixel_values")
