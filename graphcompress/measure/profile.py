"""A profile: times of operator forms that were measured on one machine, in a file for another that builds."""

from __future__ import annotations

import contextlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphcompress.errors import GraphCompressError, OutputError, UsageError
from graphcompress.measure.cache import Measurements, Times, is_times, machine_facts
from graphcompress.measure.shapes import Shape

FORMAT = 1
"""The version of the file's format; a profile of another one is refused."""


@dataclass(frozen=True)
class Profile:
    """What one machine measured; as measurements it is complete, so nothing is measured beside it.

    Attributes:
        machine: facts about the machine: processor, architecture, cores, flags, version of ONNX Runtime.
        shapes: batch and length that every row of times belongs to.
        times: by the key of a site.
    """

    machine: Mapping[str, Any]
    shapes: Sequence[Shape]
    times: Mapping[str, Times] = field(repr=False)
    complete: bool = True

    def get(self, key: str) -> Times | None:
        """Times measured under ``key``, or None."""
        return self.times.get(key)

    def put(self, key: str, times: Times) -> None:
        """Nothing: a profile is what another machine measured."""

    @property
    def name(self) -> str:
        """The machine and its runtime, for reading."""
        facts = self.machine
        return (
            f"{facts.get('processor') or facts.get('architecture', 'unknown')}, {facts.get('cores')} cores, "
            f"ONNX Runtime {facts.get('onnxruntime')}"
        )


class Recorder:
    """Passes measurements on and keeps every one that was asked for: the content of a profile."""

    def __init__(self, source: Measurements) -> None:
        self.complete = source.complete
        self.times: dict[str, Times] = {}
        self._source = source

    def get(self, key: str) -> Times | None:
        """Times that the source keeps."""
        kept = self._source.get(key)
        if kept is not None:
            self.times[key] = kept
        return kept

    def put(self, key: str, times: Times) -> None:
        """Keep ``times`` here and in the source."""
        self._source.put(key, times)
        self.times[key] = times


def check_profile_path(path: Path) -> None:
    """Fail before anything is measured when ``path`` has no folder, is one, or is a file but no profile.

    Raises:
        OutputError: it is so.
    """
    if path.is_dir() or not path.parent.is_dir():
        raise OutputError(f"{path}: the profile cannot be written; name a file in a folder that exists")
    try:
        if path.exists():
            read_profile(path)
    except GraphCompressError as error:
        raise OutputError(
            f"{path} exists and is no profile, so it is not replaced; name another file"
        ) from error


def write_profile(path: Path, shapes: Sequence[Shape], times: Mapping[str, Times]) -> None:
    """Write what this machine measured to ``path``.

    Raises:
        OutputError: the file cannot be written.
    """
    document = {
        "format": FORMAT,
        "machine": machine_facts(),
        "shapes": [list(shape) for shape in shapes],
        "times_ms": {key: {form: list(ms) for form, ms in times[key].items()} for key in sorted(times)},
    }
    aside = path.with_name(f".{path.name}.part")
    try:
        aside.write_text(json.dumps(document, indent=1, sort_keys=True) + "\n", encoding="utf-8")
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink()
        raise OutputError(f"{path}: the profile cannot be written ({error.strerror})") from error


def read_profile(path: str | Path) -> Profile:
    """Read what :func:`write_profile` wrote.

    Raises:
        UsageError: no such file, or not a profile.
    """
    try:
        document = json.loads(Path(path).read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(
            f"{path}: the profile cannot be read ({error.strerror}); make one with graphcompress tune"
        ) from error
    except (ValueError, RecursionError) as error:
        raise UsageError(f"{path}: not a profile ({error}); make one with graphcompress tune") from error
    if not isinstance(document, dict) or document.get("format") != FORMAT or not _is_whole(document):
        raise UsageError(
            f"{path}: not a profile of format {FORMAT}; make one with graphcompress tune of this version"
        )
    shapes = [(int(batch), int(length)) for batch, length in document["shapes"]]
    return Profile(document["machine"], shapes, document["times_ms"])


def _is_whole(document: Mapping[str, Any]) -> bool:
    machine, shapes, times = (document.get(key) for key in ("machine", "shapes", "times_ms"))
    if not isinstance(machine, dict) or not isinstance(shapes, list) or not isinstance(times, dict):
        return False
    pairs = all(
        isinstance(shape, list) and len(shape) == 2 and all(type(size) is int and size > 0 for size in shape)
        for shape in shapes
    )
    return bool(shapes) and pairs and all(is_times(entry) for entry in times.values())
