"""Small damage to bytes, texts and plain data."""

from __future__ import annotations

import copy
import random
from typing import Any

TEXTS = ("", "\x1b[31mred\x1b[0m\x07", "x" * 5000, "../x", "input_ids", "\u202e", "a\nb", "None")
VALUES = (None, 0, -1, 2**63, 1e308, True, [], {}, [[[]]], "a", *TEXTS)


def flipped(content: bytes, rng: random.Random, count: int) -> bytes:
    """``content`` with ``count`` bytes that are others."""
    changed = bytearray(content)
    for _ in range(count):
        changed[rng.randrange(len(changed))] = rng.randrange(256)
    return bytes(changed)


def lines_changed(text: str, rng: random.Random) -> str:
    """``text`` with a line that is gone, comes twice, or has another value."""
    lines = text.splitlines()
    place = rng.randrange(len(lines))
    name = lines[place].partition("=")[0].rstrip() or "x"
    value = rng.choice(["1", "-1", '"\\u001b[31m"', "[]", "{}", "nan", "99999999999999999999", '"x"', "true"])
    lines[place : place + 1] = rng.choice([[], [lines[place]] * 2, [f"{name} = {value}"]])
    return "\n".join(lines) + "\n"


def value_changed(data: Any, rng: random.Random) -> Any:
    """A copy of plain data with one value, anywhere, that is another or gone."""
    changed = copy.deepcopy(data)
    place = changed
    while True:
        keys = list(place) if isinstance(place, dict) else list(range(len(place)))
        if not keys:
            return changed
        key = rng.choice(keys)
        if isinstance(place[key], dict | list) and place[key] and rng.random() < 0.8:
            place = place[key]
            continue
        if rng.random() < 0.3:
            del place[key]
        else:
            place[key] = rng.choice(VALUES)
        return changed
