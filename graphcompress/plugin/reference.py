"""The reference of passes and targets, from their docstrings and options."""

from __future__ import annotations

import dataclasses
import inspect
import sys
import typing
from dataclasses import dataclass
from pathlib import Path

from graphcompress.plugin import registry
from graphcompress.plugin.base import Capabilities, Pass, Target

_HEADER = "<!-- Written by `make docs` from the docstrings and options in the source; edit those. -->\n"


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
    """One pass or target: its name, first line and whole docstring, what it promises or can run, its options.

    Attributes:
        contract: of a pass, as text.
        capabilities: of a target with its default options.
    """

    name: str
    summary: str
    text: str
    contract: str
    capabilities: Capabilities | None
    options: tuple[Option, ...]


def entries(kind: registry.Kind) -> list[Entry]:
    """All installed passes or targets, sorted by name."""
    load = registry.pass_class if kind == "passes" else registry.target_class
    return [describe(load(name)) for name in registry.names(kind)]


def describe(cls: type[Pass] | type[Target]) -> Entry:
    """The reference of one pass or target."""
    hints = typing.get_type_hints(cls)
    options = tuple(_option(field, hints[field.name]) for field in dataclasses.fields(cls))
    contract = str(cls.contract) if issubclass(cls, Pass) else ""
    capabilities = cls().capabilities if issubclass(cls, Target) else None
    return Entry(cls.name, cls.summary(), inspect.getdoc(cls) or "", contract, capabilities, options)


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
    default = default.lower() if isinstance(field.default, bool) else default
    return Option(field.name, " or ".join(arms), default or '""', ", ".join(parts), about.get("help", ""))


def markdown(kind: registry.Kind) -> str:
    """The reference page of all passes or all targets."""
    title = {"passes": "Passes", "targets": "Targets"}[kind]
    lines = [_HEADER, f"# {title}", ""]
    for entry in entries(kind):
        lines += [f"## {entry.name}", "", entry.text, ""]
        lines += [f"Contract: {entry.contract}.", ""] if entry.contract else []
        lines += [f"Runs, with default options: {entry.capabilities}.", ""] if entry.capabilities else []
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
    """Write ``passes.md`` and ``targets.md`` into ``folder``."""
    folder.mkdir(parents=True, exist_ok=True)
    for kind in typing.get_args(registry.Kind):
        (folder / f"{kind}.md").write_text(markdown(kind), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "docs"))
