"""The reference of everything that can be added, from its docstrings and options."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from graphcompress.plugin.base import Named
from graphcompress.plugin.registry import KINDS, Kind

_HEADER = "<!-- Written by `make docs` from the docstrings and options in the source; edit those. -->\n"
TITLES = {"capabilities": "runs, with default options"}
"""Headings of :meth:`Named.about` that a reader gets in other words."""


@dataclass(frozen=True)
class Option:
    """One option: its name, type, default and limits as text, and what it does."""

    name: str
    type: str
    default: str
    limits: str
    help: str


@dataclass(frozen=True)
class Entry:
    """One thing that can be added: its name, first line and whole docstring, its options.

    Attributes:
        about: what its kind says besides, such as the contract of a pass.
        usage: lines of Python that use what it makes, with its default options, without this package.
    """

    name: str
    summary: str
    text: str
    about: Mapping[str, object]
    usage: tuple[str, ...]
    options: tuple[Option, ...]

    def lines(self) -> list[str]:
        """``about`` as lines for a reader."""
        return [f"{TITLES.get(heading, heading)}: {text}" for heading, text in self.about.items()]


def entries(kind: Kind[Named]) -> list[Entry]:
    """All installed ones of a kind, sorted by name."""
    return [describe(kind.find(name)) for name in kind.names()]


def describe(cls: type[Named]) -> Entry:
    """The reference of one of them."""
    hints = typing.get_type_hints(cls)
    options = tuple(_option(field, hints[field.name]) for field in dataclasses.fields(cls))
    return Entry(cls.name, cls.summary(), inspect.getdoc(cls) or "", cls.about(), cls.usage(), options)


def _option(field: dataclasses.Field[typing.Any], hint: object) -> Option:
    about = field.metadata
    arms = [
        arm.__name__
        for arm in typing.get_args(hint) or (hint,)
        if isinstance(arm, type) and arm is not type(None)
    ]
    low, high, unit = about.get("minimum"), about.get("maximum"), about.get("unit", "")
    parts = [" ".join(about["choices"])] if about.get("choices") else []
    parts += [f"at least {low}"] if low is not None and high is None else []
    parts += [f"at most {high}"] if high is not None and low is None else []
    parts += [f"{low} to {high}"] if low is not None and high is not None else []
    parts += [unit] if unit else []
    default = "none" if field.default is None else str(field.default)
    # As it is typed: true, and not Python's True.
    default = default.lower() if isinstance(field.default, bool) else default
    old = about.get("aliases", {})
    help = about.get("help", "") + (f" (formerly {' and '.join(old)})" if old else "")
    return Option(field.name, " or ".join(arms), default or '""', ", ".join(parts), help)


def markdown(kind: Kind[Named]) -> str:
    """The reference page of all that are installed of a kind."""
    lines = [_HEADER, f"# {kind.plural.capitalize()}", ""]
    for entry in entries(kind):
        lines += [f"## {entry.name}", "", entry.text, ""]
        for line in entry.lines():
            lines += [f"{line[0].upper()}{line[1:]}.", ""]
        if entry.usage:
            code = (f"    {line}" for line in entry.usage)
            lines += ["Without this package, in the folder of an artifact:", "", *code, ""]
        lines += _table(entry.options)
    return "\n".join(lines).rstrip() + "\n"


def _table(options: tuple[Option, ...]) -> list[str]:
    if not options:
        return ["No options.", ""]
    rows = [
        f"| `{o.name}` | {o.type} | `{o.default}` | {_cell(o.limits)} | {_cell(o.help)} |" for o in options
    ]
    return ["| option | type | default | allowed, unit | meaning |", "|---|---|---|---|---|", *rows, ""]


def _cell(text: str) -> str:
    return text.replace("|", "\\|").replace("\n", " ")


def write(folder: Path) -> None:
    """Write a page for every kind, such as ``passes.md``, into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in KINDS:
        (folder / f"{kind.plural}.md").write_text(markdown(kind), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
