"""Text in lines that fit a terminal."""

from __future__ import annotations

import textwrap

WIDTH = 100
"""Lines of a result are at most this many characters long, so that they fit a terminal of a usual size."""


def wrapped(text: str, width: int = WIDTH, indent: str = "    ") -> str:
    """``text`` in lines of at most ``width`` characters; a word that is longer stays whole."""
    return textwrap.fill(
        text, width, subsequent_indent=indent, break_long_words=False, break_on_hyphens=False
    )
