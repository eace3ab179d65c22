"""What commands print fits a terminal; a file gets whole lines."""

from __future__ import annotations

import os
import pty
import subprocess
import sys
from pathlib import Path

import pytest


def on_a_terminal(*arguments: str) -> list[str]:
    """What a command prints on a terminal of 100 columns, in lines."""
    ours, theirs = pty.openpty()
    command = [sys.executable, "-m", "graphcompress", *arguments]
    environment = {**os.environ, "COLUMNS": "100", "TERM": "dumb"}
    with subprocess.Popen(command, stdout=theirs, stderr=subprocess.DEVNULL, env=environment) as running:
        os.close(theirs)
        said = b""
        # Linux answers with an error where the other end is closed.
        while chunk := _read(ours):
            said += chunk
    os.close(ours)
    assert running.returncode == 0
    return said.decode().splitlines()


def _read(stream: int) -> bytes:
    try:
        return os.read(stream, 1 << 16)
    except OSError:
        return b""


@pytest.mark.parametrize("command", [("inspect", "MODEL", "--passes", "int8"), ("targets", "cpu")])
def test_no_line_is_wider_than_the_terminal(tiny_bert_path: Path, command: tuple[str, ...]) -> None:
    lines = on_a_terminal(*(str(tiny_bert_path) if word == "MODEL" else word for word in command))
    assert len(lines) > 5
    assert max(map(len, lines)) <= 100
