"""Sizes as a user types them."""

from __future__ import annotations

import re

from graphcompress.errors import UsageError

NUMBER = re.compile(r"([0-9]*\.?[0-9]+(?:e-?[0-9]+)?)\s*(.*)", re.IGNORECASE)
"""A number, and what follows it."""

_UNITS = {"": 1, "b": 1, "kb": 10**3, "mb": 10**6, "gb": 10**9, "kib": 2**10, "mib": 2**20, "gib": 2**30}


def parse_size(text: str, where: str) -> int:
    """Read ``25MB`` (10⁶ bytes each), ``24MiB`` (2²⁰) or a number of bytes; ``where`` names the option.

    Raises:
        UsageError: it is none of them.
    """
    match = NUMBER.fullmatch(text.strip())
    unit = _UNITS.get(match[2].strip().lower()) if match else None
    if match is None or unit is None:
        raise UsageError(f"{where} {text}: give bytes, kB, MB, GB, KiB, MiB or GiB, such as 25MB")
    return int(float(match[1]) * unit)
