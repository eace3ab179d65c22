"""Runs the command line in a process of its own and judges how it ended."""

from __future__ import annotations

import hashlib
import os
import re
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

LIMIT_S, LIMIT_BYTES = 60.0, 2_000_000_000
"""What any input may cost: seconds of a core, bytes of memory."""

PATIENCE = 5
"""A machine that others use, too, may take so many times longer."""

DOCUMENTED = frozenset({0, 2, 3, 4, 5, 6, 7, 8})
"""Exit codes of the page; 1 is for what nobody thought of."""

_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")


@dataclass(frozen=True)
class Ended:
    """How a run ended: exit code, streams, seconds of a core, and the largest memory it held."""

    code: int
    out: str
    err: str
    seconds: float
    peak_bytes: int


def run(
    arguments: list[str],
    folder: Path,
    *,
    environment: Mapping[str, str | None] | None = None,
    limit_s: float = LIMIT_S,
    before: Callable[[], None] | None = None,
    kill: tuple[float, signal.Signals] | None = None,
) -> Ended:
    """One run of ``graphcompress`` in ``folder``; ``kill`` sends a signal after some seconds.

    ``before`` runs in the new process; variables that are None in ``environment`` are not set.
    """
    variables: dict[str, str | None] = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    streams = [folder.parent / f"{folder.name}.{stream}" for stream in ("out", "err")]
    with streams[0].open("wb") as out, streams[1].open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "graphcompress", *arguments],
            cwd=folder, stdout=out, stderr=err, stdin=subprocess.DEVNULL,
            env={name: value for name, value in variables.items() if value is not None},
            preexec_fn=before,
        )  # fmt: skip
        usage = _usage(process, limit_s * PATIENCE, kill)
    peak = usage.ru_maxrss * 1024
    texts = [stream.read_text(encoding="utf-8", errors="replace") for stream in streams]
    return Ended(process.returncode, *texts, usage.ru_utime + usage.ru_stime, peak)


def _usage(
    process: subprocess.Popen[bytes], limit_s: float, kill: tuple[float, signal.Signals] | None
) -> resource.struct_rusage:
    """What the process took until it ended, or was killed after ``limit_s`` seconds."""
    begun = time.perf_counter()
    pending = [] if kill is None else [kill]
    while True:
        ended, status, usage = os.wait4(process.pid, os.WNOHANG)
        if ended:
            process.returncode = os.waitstatus_to_exitcode(status)
            return usage
        passed = time.perf_counter() - begun
        if pending and passed > pending[0][0]:
            os.kill(process.pid, pending.pop()[1])
        if passed > limit_s:
            os.kill(process.pid, signal.SIGKILL)
        time.sleep(0.01)


def complaint(ended: Ended) -> str | None:
    """What is wrong with how a run ended, or None: a documented code and, if not 0, one sentence."""
    if ended.seconds > LIMIT_S:
        return f"it took more than {LIMIT_S:.0f} s"
    if ended.peak_bytes > LIMIT_BYTES:
        return f"it took {ended.peak_bytes:,} bytes"
    if "Traceback" in ended.err:
        return f"a traceback, exit {ended.code}: {ended.err.strip().splitlines()[-1][:200]}"
    if ended.code not in DOCUMENTED:
        return f"exit {ended.code}: {ended.err.strip()[-200:]}"
    if _CONTROL.search(ended.out + ended.err):
        return f"control characters are shown: {_CONTROL.search(ended.out + ended.err)!r}"
    sentences = [line for line in ended.err.splitlines() if line.startswith("error:")]
    if ended.code and (len(sentences) != 1 or not ended.err.strip().splitlines()[-1].startswith("error:")):
        return f"exit {ended.code} without one sentence: {ended.err.strip()[-200:]!r}"
    return None


def contents(folder: Path) -> dict[str, str]:
    """Path → hash of all that lies below ``folder``; what is no file has its kind."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "-"
        for path in sorted(folder.rglob("*"))
        if path.name != ".ses"  # ONNX Runtime's
    }
