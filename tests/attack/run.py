"""Runs the command line in a process of its own and judges how it ended."""

from __future__ import annotations

import contextlib
import hashlib
import importlib
import os
import re
import resource
import signal
import subprocess
import sys
import tempfile
import time
import traceback
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NoReturn, TextIO

from bert import Bert

import graphcompress.cli

LIMIT_S, LIMIT_BYTES = 60.0, 2_000_000_000
"""What any input may cost: seconds of a core, bytes of memory."""

PATIENCE = 5
"""A machine that others use, too, may take so many times longer."""

DOCUMENTED = frozenset({0, 2, 3, 4, 5, 6, 7, 8})
"""Exit codes of the page; 1 is for what nobody thought of."""

Kill = tuple[Callable[[float], bool], signal.Signals]
"""Says after so many seconds whether the moment has come, and what is sent then."""

Judged = tuple[int, str | None]
"""The exit code of an attack, and what is wrong with how it ended, or None."""

_RUNTIMES_OWN = re.compile(r"\x1b\[0;9\dm[^\n]*\[[VIWEF]:onnxruntime[^\n]*\n?")
"""A coloured line that ONNX Runtime logs as it is loaded, where it cannot keep what it wants to."""

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
    kill: Kill | None = None,
) -> Ended:
    """One run of ``graphcompress`` in ``folder``; ``kill`` sends a signal when its function says so.

    ``before`` runs in the new process; variables that are None in ``environment`` are not set.
    """
    streams = _streams(folder)
    with streams[0].open("wb") as out, streams[1].open("wb") as err:
        process = subprocess.Popen(
            [sys.executable, "-m", "graphcompress", *arguments],
            cwd=folder, stdout=out, stderr=err, stdin=subprocess.DEVNULL,
            env=_variables(environment), preexec_fn=before,
        )  # fmt: skip
        process.returncode, usage = _ended(process.pid, limit_s * PATIENCE, kill)
    return _told(process.returncode, usage, streams)


def forked(
    arguments: list[str],
    folder: Path,
    *,
    environment: Mapping[str, str | None] | None = None,
    kill: Kill | None = None,
) -> Ended:
    """As :func:`run`, in a copy of this process, which has imported already what a build imports.

    Only what the interpreter reads from the environment as it starts is that of this process.
    """
    streams = _streams(folder)
    child = os.fork()
    if child == 0:
        _become(arguments, folder, _variables(environment), streams)
    code, usage = _ended(child, LIMIT_S * PATIENCE, kill)
    return _told(code, usage, streams)


def preload() -> None:
    """Import what a build imports, so that a copy of this process need not; nothing is run here."""
    program = (
        "import sys, graphcompress; from graphcompress.passes.quantize.int8 import Int8;"
        "graphcompress.optimize('model.onnx', 'kron,prune,int8', target='cpu{measure=false}', output='out',"
        " allow=['kron', 'prune', 'int8']); print(*sys.modules, sep='\\n', file=open('modules', 'w'))"
    )
    with tempfile.TemporaryDirectory(prefix="attack-") as name:
        (Path(name) / "model.onnx").write_bytes(Bert(layers=1).model().SerializeToString())
        subprocess.run([sys.executable, "-c", program], cwd=name, check=True, capture_output=True)
        modules = (Path(name) / "modules").read_text().splitlines()
    modules += [
        "graphcompress.cli.optimize",
        "graphcompress.cli.verify",
        "tokenizers",
        "torch",
        "transformers",
    ]
    for module in modules:
        with contextlib.suppress(Exception, SystemExit):  # parts of libraries that are made, not imported
            importlib.import_module(module)


def _become(
    arguments: list[str], folder: Path, variables: Mapping[str, str], streams: list[Path]
) -> NoReturn:
    """Be the command line from here on."""
    code = 1
    try:
        os.chdir(folder)
        os.environ.clear()
        os.environ.update(variables)
        for number, path in enumerate(streams, 1):
            os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), number)
        sys.stdout, sys.stderr = map(_text, (1, 2))
        tempfile.tempdir = None
        sys.argv = ["graphcompress", *arguments]
        graphcompress.cli.main()
    except SystemExit as leave:
        code = leave.code if isinstance(leave.code, int) else int(leave.code is not None)
    except BaseException:
        traceback.print_exc()
    finally:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(Exception):
                stream.flush()
        os._exit(code)


def _text(number: int) -> TextIO:
    return os.fdopen(number, "w", encoding="utf-8", closefd=False)


def _streams(folder: Path) -> list[Path]:
    return [folder.parent / f"{folder.name}.{stream}" for stream in ("out", "err")]


def _variables(environment: Mapping[str, str | None] | None) -> dict[str, str]:
    given: dict[str, str | None] = {**os.environ, "OMP_NUM_THREADS": "1", **(environment or {})}
    return {name: value for name, value in given.items() if value is not None}


def _told(code: int, usage: resource.struct_rusage, streams: list[Path]) -> Ended:
    texts = [stream.read_text(encoding="utf-8", errors="replace") for stream in streams]
    return Ended(code, *texts, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def _ended(child: int, limit_s: float, kill: Kill | None) -> tuple[int, resource.struct_rusage]:
    """Exit code and what the process took until it ended, or was killed after ``limit_s`` seconds."""
    begun = time.perf_counter()
    pending = [] if kill is None else [kill]
    while True:
        ended, status, usage = os.wait4(child, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status), usage
        passed = time.perf_counter() - begun
        if pending and pending[0][0](passed):
            os.kill(child, pending.pop()[1])
        if passed > limit_s:
            os.kill(child, signal.SIGKILL)
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
    shown = _CONTROL.search(ended.out + _RUNTIMES_OWN.sub("", ended.err))
    if shown is not None:
        return f"control characters are shown: {shown!r}"
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
