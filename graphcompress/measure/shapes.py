"""Shapes at which a target measures: batch and sequence length."""

from __future__ import annotations

import re
from collections.abc import Sequence

from graphcompress.errors import UsageError
from graphcompress.files.runtime import Feed

Shape = tuple[int, int]
"""Batch and sequence length."""

DEFAULT_SHAPES = "1x16,1x128,8x128"

_SHAPE = re.compile(r"([1-9]\d*)x([1-9]\d*)")


def parse_shapes(text: str) -> list[Shape]:
    """Read ``1x16,8x128`` as [(1, 16), (8, 128)].

    Raises:
        UsageError: another form, or nothing.
    """
    shapes = []
    for part in text.split(","):
        match = _SHAPE.fullmatch(part.strip())
        if match is None:
            raise UsageError(f"shapes={text}: {part.strip()!r} is not batch x length, such as 1x128,8x128")
        shapes.append((int(match[1]), int(match[2])))
    return shapes


def feed_text(feed: Feed) -> str:
    """The shape of what a feed begins with, and how much past it has: ``1x16``, ``1x1+128``."""
    shape = "x".join(map(str, next(iter(feed.values())).shape))
    lengths = [array.shape[-2] for name, array in feed.items() if "past" in name and array.ndim > 2]
    past = max(lengths, default=0)
    return f"{shape}+{past}" if past else shape


def format_shapes(shapes: Sequence[Shape]) -> str:
    """``1x16,8x128``."""
    return ",".join(f"{batch}x{length}" for batch, length in shapes)
