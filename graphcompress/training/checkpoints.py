"""Checkpoints: the whole state of a run, from which it goes on to the same result."""

from __future__ import annotations

import hashlib
import time
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch

from graphcompress.errors import OutputError, TrainingError
from graphcompress.training.checkpoint_folder import PART, checkpoint_name

SECONDS = 60.0
"""The state is written at most once in this many seconds: an interruption costs no more than that."""


class Checkpoints:
    """One file in ``folder``, named after what decides the run: another run finds nothing there."""

    def __init__(self, folder: Path | None, identity: str) -> None:
        self.path = None if folder is None else folder / checkpoint_name(identity)
        self._written = time.monotonic()

    def read(self) -> dict[str, Any] | None:
        """The state that an interrupted run left, or None.

        Raises:
            TrainingError: the file is damaged.
        """
        if self.path is None or not self.path.is_file():
            return None
        try:
            # torch does not check the sums that it stores: a weight of other bits would be trained on.
            with zipfile.ZipFile(self.path) as archive:
                damaged = archive.testzip()
            state: dict[str, Any] = torch.load(self.path, map_location="cpu", weights_only=True)
        except Exception as error:  # damage shows as whatever the two libraries stumble over
            raise self._unreadable(f"{type(error).__name__}") from error
        if damaged is not None:
            raise self._unreadable(f"{damaged} is not what was written")
        return state

    def _unreadable(self, reason: str) -> TrainingError:
        return TrainingError(
            f"{self.path}: the checkpoint of an interrupted training is damaged ({reason}); delete it to "
            "train from the start"
        )

    @property
    def is_due(self) -> bool:
        """Whether it is time to write again."""
        return self.path is not None and time.monotonic() - self._written >= SECONDS

    def write(self, state: dict[str, Any]) -> None:
        """Write ``state``; the earlier file is whole until the new one is.

        Raises:
            OutputError: the disk is full or not writable.
        """
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            part = self.path.with_suffix(PART)
            torch.save(state, part)
            part.replace(self.path)
        except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
            raise OutputError(f"{self.path}: the checkpoint could not be written ({error})") from error
        self._written = time.monotonic()


def identity(options: object, tensors: Iterable[torch.Tensor], arrays: Iterable[np.ndarray]) -> str:
    """A hash of all that decides the result: options and seed, weights of student and teacher, samples."""
    digest = hashlib.sha256(repr(options).encode())
    for tensor in tensors:
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
    for array in arrays:
        digest.update(array.tobytes())
    return digest.hexdigest()
