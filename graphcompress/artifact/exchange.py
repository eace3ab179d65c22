"""Two names exchange what they stand for: at no moment is there nothing, or half of something, under one."""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path

_FROM_WORKING_FOLDER = -100  # AT_FDCWD
_EXCHANGE = 2  # RENAME_EXCHANGE

Rename = Callable[[int, bytes, int, bytes, int], int]


@cache
def renameat2() -> Rename | None:
    """Linux's call that exchanges two names in one step; None where the system has none."""
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None) if os.name == "posix" else None


def exchange(a: Path, b: Path, rename: Rename | None) -> None:
    """Exchange the folders ``a`` and ``b``, which lie side by side.

    Without ``rename`` (see :func:`renameat2`), and on a file system that cannot do it, three renames do the
    same. A process that is killed between them leaves what was ``b`` beside it, under a name that is never
    swept.

    Raises:
        OSError: it cannot be done; both are where they were.
    """
    if rename is not None:
        names = (_FROM_WORKING_FOLDER, os.fsencode(a), _FROM_WORKING_FOLDER, os.fsencode(b))
        if rename(*names, _EXCHANGE) == 0:
            return
    aside = b.with_name(f"{a.name}-replaced")
    b.rename(aside)
    try:
        a.rename(b)
    except BaseException:  # also an interruption: what was there comes back
        aside.rename(b)
        raise
    aside.rename(a)
