"""The artifact: a folder with the model's files, a manifest and a report; written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import shutil
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from graphcompress.errors import GraphCompressError, OutputError, UsageError
from graphcompress.graph.reading.hashes import sha256

MANIFEST = "graphcompress.json"


@contextlib.contextmanager
def staged(output: Path, *, overwrite: bool = False) -> Iterator[Path]:
    """A folder to write into; it becomes ``output`` when the block ends well, and is gone otherwise.

    Raises:
        UsageError: ``output`` exists and is not to be overwritten.
        OutputError: the disk is full or not writable.
    """
    refuse_existing(output, overwrite=overwrite)
    missing = [parent for parent in output.parents if not parent.exists()]
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
        folder = Path(tempfile.mkdtemp(prefix=f".{output.name}-", dir=output.parent))
    except OSError as error:
        _remove_empty(missing)
        raise OutputError(
            f"{output}: cannot be written ({error.strerror}); choose another folder with -o"
        ) from error
    try:
        yield folder
        folder.chmod(0o755)
        _swap(folder, output)
    except OSError as error:
        if isinstance(error, OutputError):
            raise
        raise OutputError(
            f"{output}: could not be written ({error.strerror or error}), nothing was left there; "
            "free some space or choose another folder with -o"
        ) from error
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        _remove_empty(missing)


@contextlib.contextmanager
def disk_errors() -> Iterator[None]:
    """Turn a full disk, wherever it is met (also in the temporary folder), into one sentence.

    Raises:
        OutputError: the disk is full.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, GraphCompressError) or error.errno not in (errno.ENOSPC, errno.EDQUOT):
            raise
        raise OutputError(
            f"the disk is full ({error.filename or 'temporary folder'}); free some space, choose another "
            "folder with -o, or another temporary folder with TMPDIR; nothing was written"
        ) from error


def refuse_existing(output: Path, *, overwrite: bool) -> None:
    """Raise when ``output`` holds anything that must not be replaced; call it before the work starts.

    Raises:
        UsageError: ``output`` exists; with ``overwrite``, only when it is not an artifact.
        OutputError: the folder that is to hold it is not writable.
    """
    _check_writable(output)
    if not output.exists() or (output.is_dir() and not any(output.iterdir())):
        return
    if not overwrite:
        raise UsageError(f"{output} exists; choose another folder with -o, or replace it with --overwrite")
    if not (output / MANIFEST).is_file():
        raise UsageError(
            f"{output} exists and is not an artifact, so it is not replaced; choose another folder with -o"
        )


def _check_writable(output: Path) -> None:
    parent = next(parent for parent in output.absolute().parents if parent.exists())
    if not parent.is_dir():
        raise OutputError(f"{output}: cannot be written ({parent} is a file); choose another folder with -o")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"{output}: cannot be written ({parent} is read-only); choose another folder with -o"
        )


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove the folders, innermost first, that are empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _swap(folder: Path, output: Path) -> None:
    if not output.exists():
        folder.rename(output)
        return
    aside = Path(tempfile.mkdtemp(prefix=f".{output.name}-old-", dir=output.parent))
    old = aside / output.name
    try:
        output.rename(old)
        folder.rename(output)
    except BaseException:  # also an interruption between the two: what was there comes back
        if old.exists() and not output.exists():
            old.rename(output)
        raise
    finally:
        shutil.rmtree(aside, ignore_errors=True)


def file_hashes(folder: Path) -> dict[str, str]:
    """File name → SHA-256 of every file below ``folder`` but the manifest."""
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``graphcompress.json`` with sorted keys, so that the same content gives the same bytes."""
    text = json.dumps(manifest, indent=2, sort_keys=True, ensure_ascii=False)
    (folder / MANIFEST).write_text(text + "\n", encoding="utf-8")


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact.

    Raises:
        UsageError: ``folder`` is not an artifact, or its manifest is damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, json.JSONDecodeError) as error:
        raise UsageError(
            f"{folder} is not an artifact of graphcompress (no readable {MANIFEST}); "
            "give a folder that optimize wrote"
        ) from error
    if not isinstance(manifest, dict):
        raise UsageError(f"{folder / MANIFEST}: expected an object, got {type(manifest).__name__}")
    return manifest
