"""Which of several processes this is, when a launcher (torchrun, accelerate launch) started more than one."""

from __future__ import annotations

import os


def rank() -> int:
    """Number of this process; 0 writes and prints, and is the only one without a launcher."""
    return _number("RANK", 0) if processes() > 1 else 0


def local_rank() -> int:
    """Number of this process among those of the same machine."""
    return _number("LOCAL_RANK", 0) if processes() > 1 else 0


def processes() -> int:
    """Number of processes that work together."""
    # Schedulers leave some of these variables in the environment of every job, and operators of clusters set
    # RANK, WORLD_SIZE and MASTER_ADDR in every pod, whatever runs there. Only a launcher numbers the
    # processes of one machine (LOCAL_RANK), too: without it a process works alone.
    launched = os.environ.get("MASTER_ADDR") and os.environ.get("LOCAL_RANK")
    return _number("WORLD_SIZE", 1) if launched else 1


def _number(name: str, default: int) -> int:
    text = os.environ.get(name, "")
    return int(text) if text.isascii() and text.isdigit() else default
