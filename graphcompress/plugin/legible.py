"""Names out of a file, as text that a terminal and a report can show."""

from __future__ import annotations

import re

_CONTROL = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u200e\u200f\u202a-\u202e\u2066-\u2069]")
"""Characters that move the cursor, colour, or turn the direction of writing; tab and line feed stay."""


def legible(text: str) -> str:
    """``text`` with control characters as Python writes them in a string, by their numbers."""
    return _CONTROL.sub(lambda match: ascii(match[0])[1:-1], text)
