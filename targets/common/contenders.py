"""Models in files that are timed: how they are opened and run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from graphcompress.errors import DataError
from graphcompress.graph.runtime import Feed, session_of

SPIN_US = 1000
"""Threads that wait longer go to sleep, and another session can be timed at once."""

Opener = Callable[[Path], Any]
"""Makes a session of a file."""


def on_cpu(path: Path) -> Any:  # noqa: ANN401 - a session of the runtime
    """A session on the CPU provider whose threads go to sleep soon, so that others can be timed."""
    return session_of(path, spin_us=SPIN_US)


def run_on(session: object, feed: Feed) -> Callable[[], object]:
    """One run of ``session`` on ``feed``."""
    return lambda: session.run(None, dict(feed))  # type: ignore[attr-defined]


def first_run(name: str, run: Callable[[], object]) -> None:
    """Run once.

    Raises:
        DataError: the model called ``name`` does not run.
    """
    try:
        run()
    except Exception as error:  # onnxruntime's exceptions share no base class
        reason = str(error).splitlines()[0][:200]
        raise DataError(f"the {name} does not run at a shape that is measured ({reason})") from error
