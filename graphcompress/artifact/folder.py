"""The artifact: a folder with the model's files, a manifest and a report; written whole or not at all."""

from __future__ import annotations

import contextlib
import errno
import json
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from graphcompress.artifact.exchange import Rename, exchange, renameat2
from graphcompress.errors import ContractError, GraphCompressError, OutputError, UsageError
from graphcompress.files.reading.hashes import sha256
from graphcompress.files.temporary import Temporary, sweep

MANIFEST, REPORT, PAGE, TIMES = "graphcompress.json", "report.md", "report.html", "times.json"

MEASURED = (PAGE, TIMES)
"""Files that tell times, which differ from run to run: the manifest does not hold their hashes."""

SHOWN = 5
"""A refusal names at most this many files and counts the others."""


@contextlib.contextmanager
def staged(output: Path, *, overwrite: bool = False, rename: Rename | None = None) -> Iterator[Path]:
    """A folder to write into; it becomes ``output`` when the block ends well, and is gone otherwise.

    What killed builds left beside it is swept. An artifact that it replaces is there until it is exchanged in
    one step (by ``rename``, where given, else by :func:`renameat2`), and only then deleted: only files that a
    build wrote, and that are as they were written.

    Raises:
        UsageError: ``output`` exists and is not to be overwritten, or holds files that no build wrote.
        OutputError: the disk is full or not writable.
    """
    refuse_existing(output, overwrite=overwrite)
    place = Path(os.path.realpath(output))  # the artifact goes where a link points to
    missing = [parent for parent in place.parents if not parent.exists()]
    stage = _made_beside(place, output, missing)
    try:
        yield stage.path
        with write_errors(output):
            # A temporary folder is for its owner alone; others read an artifact, too.
            stage.path.chmod(0o755)
            _put(stage.path, place, output, overwrite, rename or renameat2())
    finally:
        stage.remove()
        _remove_empty(missing)


def _made_beside(place: Path, output: Path, missing: Iterable[Path]) -> Temporary:
    try:
        place.parent.mkdir(parents=True, exist_ok=True)
        for folder in (place.parent, Path(tempfile.gettempdir())):
            sweep(folder, may_go=_is_left_over)
        return Temporary(place.parent)
    except OSError as error:
        _remove_empty(missing)
        raise OutputError(
            f"{output}: cannot be written ({error.strerror}); choose another folder with -o"
        ) from error


@contextlib.contextmanager
def write_errors(output: Path) -> Iterator[None]:
    """Say in one sentence that ``output`` cannot be written.

    Raises:
        OutputError: the disk is full or not writable.
    """
    try:
        yield
    except OSError as error:
        if isinstance(error, GraphCompressError):
            raise
        raise OutputError(
            f"{output}: could not be written ({error.strerror or error}), nothing was left there; "
            "free some space or choose another folder with -o"
        ) from error


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
        UsageError: ``output`` exists; with ``overwrite``, only when it is not an artifact, or one that holds
            files that no build wrote.
        OutputError: the folder that is to hold it is not writable, or its name is none that a file can have.
    """
    _check_writable(output)
    if not output.exists() or _is_empty(output):
        return
    if not overwrite:
        raise UsageError(f"{output} exists; choose another folder with -o, or replace it with --overwrite")
    _refuse_foreign(output, output)


def _check_writable(output: Path) -> None:
    try:
        parent = next(parent for parent in Path(os.path.realpath(output)).parents if parent.exists())
        output.exists()
    except (OSError, ValueError) as error:  # too long for the file system, or a character that it cannot hold
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"{output}: cannot be written ({reason}); choose another folder with -o") from error
    if not parent.is_dir():
        raise OutputError(f"{output}: cannot be written ({parent} is a file); choose another folder with -o")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise OutputError(
            f"{output}: cannot be written ({parent} is read-only); choose another folder with -o"
        )


def _is_empty(folder: Path) -> bool:
    return folder.is_dir() and not any(folder.iterdir())


def _refuse_foreign(folder: Path, output: Path) -> None:
    """Raise unless all of ``folder``, which is or was ``output``, can be replaced."""
    if not (folder / MANIFEST).is_file():
        raise UsageError(
            f"{output} exists and is not an artifact, so it is not replaced; choose another folder with -o"
        )
    names = [path.relative_to(folder).as_posix() for path in foreign(folder)]
    if names:
        more = f" and {len(names) - SHOWN} more" if len(names) > SHOWN else ""
        raise UsageError(
            f"{output} holds files that no build wrote, or that were changed since: "
            f"{', '.join(names[:SHOWN])}{more}; move them away, or choose another folder with -o"
        )


def foreign(artifact: Path) -> list[Path]:
    """Files and links in an artifact that are not in its manifest, or are not as they were written.

    Raises:
        UsageError: the manifest is damaged.
    """
    made = _made(artifact)
    return [path for path in _contents(artifact) if not _is_as_made(path, made)]


def check_hashes(artifact: Path) -> None:
    """Compare the files of an artifact with the SHA-256 of each in its manifest; others are ignored.

    Raises:
        ContractError: a file was changed since the build, or is missing.
        UsageError: ``artifact`` is none, or its manifest is damaged.
    """
    if not isinstance(read_manifest(artifact).get("files"), dict):
        raise UsageError(f"{artifact / MANIFEST} holds no hashes of files; build the artifact again")
    made, there = _made(artifact), set(_contents(artifact))  # only what lies in it is read, whatever is named
    missing = [f"{path.relative_to(artifact).as_posix()} is missing" for path in made if path not in there]
    # A file that is named but lies elsewhere is missing: a manifest must not make us read any file of the
    # disk.
    changed = [
        f"{path.relative_to(artifact).as_posix()} was changed"
        for path in made
        if path in there and not _is_as_made(path, made)
    ]
    if found := [*missing, *changed]:
        more = f" and {len(found) - SHOWN} more" if len(found) > SHOWN else ""
        raise ContractError(
            f"{artifact} is not as it was built: {', '.join(found[:SHOWN])}{more}; build it again"
        )


def _contents(artifact: Path) -> list[Path]:
    """All that lies in an artifact but its folders; what a link points to does not lie in it."""
    return sorted(path for path in artifact.rglob("*") if path.is_symlink() or not path.is_dir())


def _is_as_made(path: Path, made: Mapping[Path, str | None]) -> bool:
    if path not in made or path.is_symlink() or not path.is_file():
        return False
    return made[path] in (None, sha256(path))


def _made(artifact: Path) -> dict[Path, str | None]:
    """Files that a build wrote → their hash; None for those that hold hashes or times, or join several."""
    manifest = read_manifest(artifact)
    hashes, artifacts = manifest.get("files"), manifest.get("artifacts")
    there = [artifact / name for name in MEASURED if (artifact / name).is_file()]
    made: dict[Path, str | None] = {artifact / MANIFEST: None, **dict.fromkeys(there)}
    if isinstance(hashes, dict):
        made |= {artifact / name: str(digest) for name, digest in hashes.items()}
    if isinstance(artifacts, list):
        made |= dict.fromkeys((artifact / REPORT, artifact / PAGE))
        for folder in artifact.iterdir():
            if folder.name in artifacts and (folder / MANIFEST).is_file() and not folder.is_symlink():
                made |= _made(folder)
    return made


def _remove_empty(folders: Iterable[Path]) -> None:
    """Remove the folders, innermost first, that are empty."""
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


def _put(stage: Path, place: Path, output: Path, overwrite: bool, rename: Rename | None) -> None:
    """Move the finished folder to its place."""
    # A rename replaces an empty folder, and fails where another process has put something there meanwhile.
    if not overwrite or not place.exists() or _is_empty(place):
        try:
            stage.rename(place)
        except OSError as error:
            if not place.exists():
                raise
            raise UsageError(f"{output} appeared during the build; choose another folder with -o") from error
        return
    exchange(stage, place, rename)
    try:  # what came out is judged now, when nobody can put anything into it by its name any more
        _refuse_foreign(stage, output)
    except BaseException:
        exchange(stage, place, rename)
        raise
    # The new artifact is in place: what of the old one cannot be deleted is swept by the next build.
    with contextlib.suppress(OSError):
        _remove_made(stage)


def _remove_made(artifact: Path) -> None:
    """Delete what a build wrote, the manifest last."""
    manifest, made = artifact / MANIFEST, _made(artifact)
    # As long as the manifest is there, what is left can be told from files of others.
    for path in sorted(_contents(artifact), key=lambda path: path.name == MANIFEST):
        if path in made and path != manifest:
            path.unlink()
    _remove_empty(sorted((path for path in artifact.rglob("*") if path.is_dir()), reverse=True))
    if list(artifact.iterdir()) == [manifest]:
        manifest.unlink()
        artifact.rmdir()


def _is_left_over(folder: Path) -> bool:
    """Whether all in a folder of a killed build is from a build: it may be an artifact that was replaced."""
    try:
        return not (folder / MANIFEST).exists() or not foreign(folder)
    except UsageError:
        return False


def file_hashes(folder: Path) -> dict[str, str]:
    """File name → SHA-256 of every file below ``folder`` but the manifest, and what tells times."""
    apart = {folder / name for name in (MANIFEST, *MEASURED)}
    files = sorted(path for path in folder.rglob("*") if path.is_file() and path not in apart)
    return {path.relative_to(folder).as_posix(): sha256(path) for path in files}


def write_manifest(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Write ``graphcompress.json`` with sorted keys, so that the same content gives the same bytes."""
    (folder / MANIFEST).write_text(_json(manifest), encoding="utf-8")


def write_times(folder: Path, times: Mapping[str, Any]) -> None:
    """Write ``times.json``: what was measured on this machine."""
    (folder / TIMES).write_text(_json(times), encoding="utf-8")


def read_times(folder: Path) -> dict[str, Any]:
    """What was measured of an artifact when it was built; empty where nothing was.

    Raises:
        UsageError: the file is damaged.
    """
    path = folder / TIMES
    if not path.is_file():
        return {}
    try:
        times = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(f"{path}: damaged ({error}); delete it, or build the artifact again") from error
    if not isinstance(times, dict) or not {"machine", "shapes", "steps", "operators_ms"} <= times.keys():
        raise UsageError(f"{path}: not what a build measured; delete it, or build the artifact again")
    return times


def _json(document: Mapping[str, Any]) -> str:
    return json.dumps(document, indent=2, sort_keys=True, ensure_ascii=False) + "\n"


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of an artifact.

    Raises:
        UsageError: ``folder`` is not an artifact, or its manifest is damaged.
    """
    try:
        manifest = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError) as error:
        raise UsageError(
            f"{folder} is not an artifact of graphcompress (no readable {MANIFEST}); "
            "give a folder that optimize wrote"
        ) from error
    if not isinstance(manifest, dict):
        raise UsageError(f"{folder / MANIFEST}: expected an object, got {type(manifest).__name__}")
    return manifest
