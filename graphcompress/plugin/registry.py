"""Names of passes and targets → classes, through entry points, imported when first used.

A third-party package adds a pass by declaring an entry point in the group ``graphcompress.passes``
(``graphcompress.targets`` for a target); nothing in this package has to change.
"""

from __future__ import annotations

from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Literal, TypeVar

from graphcompress.errors import UsageError, nearest
from graphcompress.plugin.base import Pass, Target

Kind = Literal["passes", "targets"]
T = TypeVar("T")


@cache
def _entries(kind: Kind) -> dict[str, EntryPoint]:
    return {entry.name: entry for entry in entry_points(group=f"graphcompress.{kind}")}


def names(kind: Kind) -> list[str]:
    """Names of the installed passes or targets, sorted; nothing is imported."""
    return sorted(_entries(kind))


def pass_class(name: str) -> type[Pass]:
    """The pass class called ``name``.

    Raises:
        UsageError: no installed package declares it.
    """
    return _class("passes", Pass, name)  # type: ignore[type-abstract]


def target_class(name: str) -> type[Target]:
    """The target class called ``name``.

    Raises:
        UsageError: no installed package declares it.
    """
    return _class("targets", Target, name)  # type: ignore[type-abstract]


def _class(kind: Kind, base: type[T], name: str) -> type[T]:
    loaded = _load(kind, name)
    if not (isinstance(loaded, type) and issubclass(loaded, base)):
        raise UsageError(
            f"entry point {name!r} of group graphcompress.{kind} is not a {base.__name__}: {loaded!r}"
        )
    return loaded


def _load(kind: Kind, name: str) -> object:
    entries = _entries(kind)
    if name not in entries:
        noun = {"passes": "pass", "targets": "target"}[kind]
        raise UsageError(f"unknown {noun} {name!r}: {nearest(name, entries)}")
    try:
        return entries[name].load()
    except (ImportError, AttributeError) as error:
        raise UsageError(
            f"{name!r} is declared as {entries[name].value} but cannot be loaded ({error}); "
            "install its package again, or what it needs"
        ) from error
