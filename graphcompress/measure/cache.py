"""Measurements on disk, one file per machine: a form is measured once, and a build can be repeated."""

from __future__ import annotations

import functools
import hashlib
import json
import logging
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from graphcompress.files.temporary import Temporary, sweep

_LOG = logging.getLogger(__name__)
_CPUINFO = Path("/proc/cpuinfo")

Times = Mapping[str, Sequence[float]]
"""Form name → milliseconds at every shape."""


class Measurements(Protocol):
    """Times by key, kept from earlier measurements."""

    @property
    def complete(self) -> bool:
        """Whether nothing is measured anew: what has no times here has none."""

    def get(self, key: str) -> Times | None:
        """Times kept under ``key``, or None."""

    def put(self, key: str, times: Times) -> None:
        """Keep ``times``."""


def cache_folder() -> Path:
    """``$XDG_CACHE_HOME/graphcompress``, by default ``~/.cache/graphcompress``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "graphcompress"


@functools.cache
def cpu_flags() -> frozenset[str]:
    """Instruction sets that the processor says it has; empty where the system does not tell."""
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return frozenset()
    for line in text.splitlines():
        key, _, value = line.partition(":")
        if key.strip() in ("flags", "Features"):
            return frozenset(value.split())
    return frozenset()


def machine_facts() -> dict[str, Any]:
    """What times depend on: architecture, processor, usable cores, instruction sets, runtime."""
    import onnxruntime

    return {
        "architecture": platform.machine(),
        "processor": _cpu_model(),
        "cores": _cores(),
        "flags": sorted(cpu_flags()),
        "onnxruntime": onnxruntime.__version__,
    }


def machine() -> str:
    """A digest of :func:`machine_facts`."""
    facts = machine_facts()
    parts = [facts["architecture"], facts["processor"], *facts["flags"], str(facts["cores"])]
    return hashlib.sha256("|".join([*parts, facts["onnxruntime"]]).encode()).hexdigest()[:16]


class MeasurementCache:
    """Times by key in one JSON file; a file that cannot be read or written is only a warning.

    ``folder`` is by default :func:`cache_folder`.
    """

    complete = False

    def __init__(self, folder: Path | None = None) -> None:
        self.path = (folder or cache_folder()) / f"measurements-{machine()}.json"
        self._entries = self._read()

    @property
    def keys(self) -> list[str]:
        """Keys under which times are kept, in the order in which they came."""
        return list(self._entries)

    def get(self, key: str) -> Times | None:
        """Times kept under ``key``, or None."""
        return self._entries.get(key)

    def put(self, key: str, times: Times) -> None:
        """Keep ``times`` unless the key has some; what another process wrote meanwhile is kept too."""
        fresh = {key: {form: list(ms) for form, ms in times.items()}}
        self._entries = {**fresh, **self._entries, **self._read()}
        try:
            self._write()
        except OSError as error:
            _LOG.warning("measurements could not be kept in %s (%s)", self.path, error.strerror)

    def _read(self) -> dict[str, dict[str, list[float]]]:
        try:
            entries = json.loads(self.path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            return {}
        except (OSError, ValueError, RecursionError) as error:
            _LOG.warning("measurements in %s are unreadable (%s); measuring again", self.path, error)
            return {}
        if not isinstance(entries, dict) or not all(is_times(times) for times in entries.values()):
            _LOG.warning("measurements in %s have another form; measuring again", self.path)
            return {}
        return entries

    def _write(self) -> None:
        folder = self.path.parent
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)  # what a build that was killed has left
        with Temporary(folder) as scratch:
            written = scratch / self.path.name
            written.write_text(json.dumps(self._entries, indent=1, sort_keys=True), encoding="utf-8")
            written.replace(self.path)


def is_times(times: object) -> bool:
    """Whether a value read from a file has the form of :data:`Times`."""
    return isinstance(times, dict) and all(isinstance(row, list) and _positive(row) for row in times.values())


def _positive(row: Sequence[object]) -> bool:
    return all(isinstance(ms, float) and ms > 0 for ms in row)


def _cpu_model() -> str:
    try:
        text = _CPUINFO.read_text(encoding="utf-8", errors="replace")
    except OSError:
        return platform.processor()
    names = [line.partition(":")[2].strip() for line in text.splitlines() if line.startswith("model name")]
    return names[0] if names else platform.processor()


def _cores() -> int:
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
