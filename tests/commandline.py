"""The command line, run in the process of a test."""

from __future__ import annotations

import contextlib
import io
import signal
import sys
from pathlib import Path
from typing import NamedTuple

import pytest

from graphcompress import cli


class Done(NamedTuple):
    """How a command ended."""

    returncode: int
    stdout: str
    stderr: str


def run(*arguments: object, cwd: Path = Path()) -> Done:
    """Run the command line in this process."""
    said, failed = io.StringIO(), io.StringIO()
    with (
        pytest.MonkeyPatch.context() as patch,
        contextlib.redirect_stdout(said),
        contextlib.redirect_stderr(failed),
    ):
        patch.chdir(cwd)
        patch.setattr(sys, "argv", ["graphcompress", *map(str, arguments)])
        patch.setattr(signal, "signal", lambda number, handler: None)
        with pytest.raises(SystemExit) as left:
            cli.main()
    return Done(int(left.value.code or 0), said.getvalue(), failed.getvalue())
