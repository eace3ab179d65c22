"""Temporary folders: gone with the process that made them, or swept by the next one when it was killed."""

from __future__ import annotations

import contextlib
import os
import re
import secrets
import shutil
import sys
import tempfile
import weakref
from collections.abc import Callable, Sequence
from pathlib import Path

if sys.platform != "win32":
    import fcntl

_NAME = re.compile(r"\.?graphcompress-[0-9a-f]{16}")
"""Sixteen random digits: no folder of a user's has such a name."""


class Temporary:
    """A folder of this process. It is locked as long as it lives, so that others see whether its owner does.

    The lock is on the folder itself and goes with the process, however that ends: unlike the number of a
    process it is never taken for that of another, and it holds across containers.

    Args:
        parent: where it lies, hidden; in the system's temporary folder when None.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, parent: Path | None = None) -> None:
        place = Path(tempfile.gettempdir()) if parent is None else parent
        self._lock: int | None = None
        while True:
            self.path = place / f"{'.' if parent else ''}graphcompress-{secrets.token_hex(8)}"
            made: list[os.stat_result] = []
            # A signal may come as soon as the folder is there, and before anybody has this object.
            self._deleted = weakref.finalize(self, _delete, self.path, made, os.getpid())
            try:
                self.path.mkdir(mode=0o700)
            except OSError:
                self._deleted.detach()
                raise
            with contextlib.suppress(BlockingIOError, FileNotFoundError):
                self._lock = _locked(self.path)
                made.append(self.path.lstat())
                return
            # A process that sweeps came between: it takes a folder that nobody has locked yet for a dead one.
            self._deleted.detach()

    def __enter__(self) -> Path:
        return self.path

    def __exit__(self, *exception: object) -> None:
        self.remove()

    def remove(self) -> None:
        """Delete the folder with what is in it; where its name stands for another one by now, that stays."""
        self._deleted()
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _delete(folder: Path, made: Sequence[os.stat_result], owner: int) -> None:
    """Delete ``folder``, unless it is another one than was ``made``, or this is a fork of its ``owner``."""
    with contextlib.suppress(OSError):
        if os.getpid() == owner and (not made or os.path.samestat(folder.lstat(), made[0])):
            shutil.rmtree(folder, ignore_errors=True)


def sweep(place: Path, may_go: Callable[[Path], bool] = lambda folder: True) -> list[Path]:
    """Delete what killed processes of this user left in ``place``, as far as ``may_go`` agrees; return it."""
    if not os.access(place, os.R_OK | os.X_OK):
        return []
    named = sorted(path for path in place.iterdir() if _NAME.fullmatch(path.name))
    folders = [path for path in named if path.is_dir() and not path.is_symlink()]
    return [folder for folder in folders if _swept(folder, may_go)]


def _swept(folder: Path, may_go: Callable[[Path], bool]) -> bool:
    if sys.platform == "win32":  # it has no such locks: what was left there stays
        return False
    try:
        lock = _locked(folder) if folder.stat().st_uid == os.getuid() else None
    except OSError:  # its owner lives, or has just removed it
        return False
    if lock is None:
        return False
    swept = may_go(folder)
    if swept:
        shutil.rmtree(folder, ignore_errors=True)
    os.close(lock)
    return swept


def _locked(folder: Path) -> int | None:
    """A lock on ``folder``; None where the file system knows no locks.

    Raises:
        BlockingIOError: another process has it.
        FileNotFoundError: it is gone.
    """
    if sys.platform == "win32":
        return None
    handle = os.open(folder, os.O_RDONLY)
    try:
        fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError as error:
        os.close(handle)
        if isinstance(error, BlockingIOError):
            raise
        return None
    return handle
