"""Every error a user can meet, each with the exit code that the command line returns for it.

A message says what happened, where, what was seen, what was wanted and what to do about it.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar


class GraphCompressError(Exception):
    """Base of all errors raised on purpose."""

    exit_code: ClassVar[int] = 1


class UsageError(GraphCompressError, ValueError):
    """An unknown name, an option out of range, or a request that contradicts itself."""

    exit_code = 2


class MissingExtraError(GraphCompressError, ImportError):
    """A part of the package that needs an optional dependency, which is not installed."""

    exit_code = 2


class ContractError(GraphCompressError):
    """A pass changed the outputs by more than it promised, or an artifact is not as it was built."""

    exit_code = 3


class SpeedError(GraphCompressError):
    """An artifact that is slower than the model it was made from, or something that could not be timed."""

    exit_code = 3


class GoalError(GraphCompressError):
    """An artifact that misses a goal of the build: its metric, its speed or its size."""

    exit_code = 3


class CoverageError(GraphCompressError):
    """A pass touched a smaller share of the weights than the build requires."""

    exit_code = 3


class UnsupportedModelError(GraphCompressError):
    """A valid ONNX model that this tool cannot handle; the message names the construct."""

    exit_code = 4


class InvalidModelError(GraphCompressError, ValueError):
    """The file is not a readable ONNX model, or its weights are missing, cut short or not finite."""

    exit_code = 5


class DataError(GraphCompressError, ValueError):
    """Samples or a tokenizer that do not fit the model."""

    exit_code = 6


class MetricError(GraphCompressError):
    """A metric of the user's own that fails, or finds no number."""

    exit_code = 9


class TrainingError(GraphCompressError):
    """A training that cannot go on: the loss is no number, or memory ran out."""

    exit_code = 8


class OutputError(GraphCompressError, OSError):
    """The artifact could not be written; nothing half-done is left behind."""

    exit_code = 7


def nearest(name: str, known: Iterable[str]) -> str:
    """A hint for a misspelt ``name``: the closest known one, or all of them."""
    names = sorted(known)
    close = closest(name, names)
    if close:
        return f"did you mean {close!r}?"
    return f"known: {', '.join(names)}" if names else "none are installed"


def closest(name: str, known: Iterable[str]) -> str | None:
    """The one of ``known`` that ``name`` is a misspelling of, or None."""
    return next(iter(difflib.get_close_matches(name.lower(), sorted(known), n=1)), None)
