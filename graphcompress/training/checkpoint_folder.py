"""The folder of checkpoints beside an artifact: which files in it are ours, told without torch."""

from __future__ import annotations

import contextlib
import re
from pathlib import Path

from graphcompress.errors import UsageError

WHOLE, PART = ".pt", ".part"
_NAME = re.compile(r"[0-9a-f]{16}(\.pt|\.part)")


def checkpoint_name(identity: str) -> str:
    """Name of the checkpoint of a run that ``identity`` (a hash, as hexadecimal digits) decides."""
    return f"{identity[:16]}{WHOLE}"


def refuse_other_files(folder: Path) -> None:
    """Raise when ``folder`` is something else than a folder of checkpoints; it need not exist.

    Raises:
        UsageError: it is a file, or holds what no training wrote.
    """
    if not folder.exists() and not folder.is_symlink():
        return
    names = [path.name for path in folder.iterdir()] if folder.is_dir() else [folder.name]
    others = sorted(name for name in names if not _NAME.fullmatch(name))
    if others:
        raise UsageError(
            f"{folder} is for checkpoints, but holds {', '.join(others[:5])}, which no training wrote; "
            "move it away, or choose another folder with -o"
        )


def has_checkpoints(folder: Path) -> bool:
    """Whether a training left something in ``folder`` that it can go on from."""
    return folder.is_dir() and any(
        path.suffix == WHOLE and _NAME.fullmatch(path.name) for path in folder.iterdir()
    )


def remove_checkpoints(folder: Path) -> None:
    """Delete the checkpoints in ``folder``, and the folder when nothing else is in it."""
    with contextlib.suppress(OSError):  # the build is done: what cannot be deleted is no failure of it
        for path in folder.iterdir():
            if _NAME.fullmatch(path.name):
                path.unlink()
        folder.rmdir()
