"""SHA-256 of files."""

from __future__ import annotations

import functools
import hashlib
from pathlib import Path


def sha256(path: Path) -> str:
    """Hexadecimal SHA-256 of a file; a file that has not changed since is not read again."""
    seen = path.stat()
    # A file that is written anew has another inode, size or time, so that an old hash is never taken for
    # it.
    return _sha256(path.resolve(), seen.st_ino, seen.st_size, seen.st_mtime_ns)


@functools.lru_cache(maxsize=256)
def _sha256(path: Path, *identity: int) -> str:
    """The hash of the file that ``path`` is while it has this ``identity``."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
