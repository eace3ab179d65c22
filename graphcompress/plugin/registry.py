"""Names of what can be added → classes, through entry points, imported when first used.

A third-party package adds a pass by declaring an entry point in the group ``graphcompress.passes``, and
anything else in the group of its kind; nothing in this package has to change.
"""

from __future__ import annotations

import dataclasses
import logging
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib.metadata import EntryPoint, entry_points
from typing import Generic, TypeVar

from graphcompress.errors import UsageError, closest, nearest
from graphcompress.plugin.base import Named, Pass, Target
from graphcompress.plugin.instrument import Instrument
from graphcompress.plugin.task import Metric, Task

_LOG = logging.getLogger(__name__)

T_co = TypeVar("T_co", bound=Named, covariant=True)


@dataclass(frozen=True)
class Kind(Generic[T_co]):
    """One kind of thing that can be added.

    Attributes:
        plural: the command that lists them, and the end of their group of entry points.
        noun: one of them, in a message.
        flag: the option of the command line that names them, or an empty text.
        base: the class that all of them extend.
    """

    plural: str
    noun: str
    base: type[T_co]
    flag: str = ""

    def names(self) -> list[str]:
        """Names of the installed ones, sorted; nothing is imported."""
        return sorted(self._declared())

    def find(self, name: str) -> type[T_co]:
        """The class called ``name``.

        Raises:
            UsageError: no installed package declares it, two do, or what is declared cannot be used.
        """
        declared = self._declared()
        if name not in declared:
            raise UsageError(f"unknown {self.noun} {name!r}: {hint(name, self)}")
        first, *others = declared[name]
        if others:
            raise UsageError(
                f"{self.noun} {name!r} is declared by {_origin(first)} and by {_origin(others[0])}; "
                "uninstall one of them, or rename it"
            )
        return self._checked(name, _load(first))

    def usable(self) -> list[type[T_co]]:
        """The installed ones in the order of their names; what cannot be used is a warning, and left out.

        For what looks at all of them: a package that is broken must not stop a build that does not name it.
        """
        found = []
        for name in self.names():
            try:
                found.append(self.find(name))
            except UsageError as error:
                _LOG.warning("%s %r is left out: %s", self.noun, name, error)
        return found

    def _declared(self) -> dict[str, list[EntryPoint]]:
        # The path is part of the key: a package that appears on it while Python runs is found.
        return _declared(f"graphcompress.{self.plural}", tuple(sys.path))

    def _checked(self, name: str, loaded: object) -> type[T_co]:
        where = f"entry point {name!r} of group graphcompress.{self.plural}"
        if not (isinstance(loaded, type) and issubclass(loaded, self.base)):
            raise UsageError(f"{where} is not a {self.base.__name__}: {loaded!r}")
        # An artifact records the class by its own name, and is opened by the name of the entry point.
        if loaded.name != name:
            raise UsageError(f"{where} calls itself {loaded.name!r}; give both one name")
        return loaded


PASSES = Kind("passes", "pass", Pass, "--passes")
TARGETS = Kind("targets", "target", Target, "--target")
TASKS = Kind("tasks", "task", Task)
METRICS = Kind("metrics", "metric", Metric, "--metric")
INSTRUMENTS = Kind("instruments", "instrument", Instrument)
KINDS: tuple[Kind[Named], ...] = (PASSES, TARGETS, TASKS, METRICS, INSTRUMENTS)


@cache
def _declared(group: str, path: tuple[str, ...]) -> dict[str, list[EntryPoint]]:
    """Name → all entry points of ``group`` that have it, as the packages on ``path`` declare them."""
    found: dict[str, list[EntryPoint]] = {}
    for entry in entry_points(group=group):
        found.setdefault(entry.name, []).append(entry)
    return found


def _origin(entry: EntryPoint) -> str:
    package = entry.dist.name if entry.dist else "an unnamed package"
    return f"{package} ({entry.value})"


def _load(entry: EntryPoint) -> object:
    try:
        return entry.load()
    except Exception as error:  # the module of another package may fail in any way
        raise UsageError(
            f"{entry.name!r} is declared as {entry.value} but cannot be loaded "
            f"({type(error).__name__}: {error}); "
            "install its package again, or what it needs"
        ) from error


def hint(name: str, kind: Kind[Named]) -> str:
    """What to type in place of ``name``, which is no ``kind``: looked for in all that is installed."""
    names = kind.names()
    return meant(name, kind) or nearest(name, names)


def meant(name: str, kind: Kind[Named] | None = None) -> str:
    """What ``name`` is called here: by its own kind first, else by another one; empty where nobody knows."""
    word = name.lower().lstrip("-").replace("-", "_")
    told = " or ".join(dict.fromkeys(_by_words(word)))
    if told:
        return f"write {told}"
    # A slip of the keys is likelier than the name of something else.
    if kind is not None and closest(name, kind.names()):
        return ""
    for other in KINDS:
        if other is not kind and name in other.names():
            return f"{name} is a {other.noun}" + (f": {other.flag} {name}" if other.flag else "")
    options = " or ".join(dict.fromkeys(_options(word)))
    return f"{word} is an option: write {options}" if options else ""


def _by_words(word: str) -> Iterator[str]:
    for kind in KINDS:
        for installed in kind.usable():
            text = installed.also_called.get(word)
            if text is not None:
                yield text if text.startswith("-") or not kind.flag else f"{kind.flag} {text}"


def _options(word: str) -> Iterator[str]:
    for kind in KINDS:
        for installed in kind.usable() if kind.flag else ():
            if any(field.name == word for field in dataclasses.fields(installed)):
                yield f"{kind.flag} '{installed.name}{{{word}=…}}'"
