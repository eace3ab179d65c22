"""Which of several processes this is, when a launcher (torchrun, accelerate launch) started more than one."""

from __future__ import annotations

import os


def rank() -> int:
    """Number of this process; 0 writes and prints, and is the only one without a launcher."""
    return int(os.environ.get("RANK", "0"))


def local_rank() -> int:
    """Number of this process among those of the same machine."""
    return int(os.environ.get("LOCAL_RANK", "0"))


def processes() -> int:
    """Number of processes that work together."""
    return int(os.environ.get("WORLD_SIZE", "1"))
