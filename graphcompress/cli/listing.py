"""``graphcompress passes``, ``targets``, ``tasks``, ``metrics``, ``instruments``: what is installed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from graphcompress.cli.terminal import Json, out, print_json, tell
from graphcompress.plugin.registry import INSTRUMENTS, METRICS, PASSES, TARGETS, TASKS, Kind

if TYPE_CHECKING:
    from graphcompress.plugin.base import Named
    from graphcompress.plugin.reference import Entry

Name = Annotated[str | None, typer.Argument(help="Show only this one, with its whole description.")]


def passes(name: Name = None, json: Json = False) -> None:
    """List the installed passes with their contracts and options."""
    _show(PASSES, name, json)


def targets(name: Name = None, json: Json = False) -> None:
    """List the installed targets with what they can run and their options."""
    _show(TARGETS, name, json)


def tasks(name: Name = None, json: Json = False) -> None:
    """List the installed tasks: how rows are fed, and which answers a person gets."""
    _show(TASKS, name, json)


def metrics(name: Name = None, json: Json = False) -> None:
    """List the installed metrics with their direction, what they need and their options."""
    _show(METRICS, name, json)


def instruments(name: Name = None, json: Json = False) -> None:
    """List the installed instruments, which a pass that trains puts to work, with their options."""
    _show(INSTRUMENTS, name, json)


def _show(kind: Kind[Named], name: str | None, json: bool) -> None:
    from graphcompress.plugin import reference

    found = reference.entries(kind) if name is None else [reference.describe(kind.find(name))]
    if json:
        flat = [dataclasses.asdict(entry) for entry in found]
        print_json([entry.pop("about") | entry for entry in flat])
        return
    for entry in found:
        _print(entry, whole=name is not None)


def _print(entry: Entry, *, whole: bool) -> None:
    from rich.table import Table

    console = out()
    tell(f"{entry.name}: {entry.text if whole else entry.summary}")
    for line in entry.lines():
        tell(f"  {line}")
    if whole and entry.usage:
        console.print("  without this package, in the folder of an artifact:")
        for line in entry.usage:
            console.print(f"    {line}", markup=False)
    if not entry.options:
        console.print("  no options\n")
        return
    table = Table(box=None, padding=(0, 2))
    for title in ("option", "type", "default", "allowed, unit", "meaning"):
        table.add_column(title, no_wrap=title != "meaning")
    for option in entry.options:
        table.add_row(option.name, option.type, option.default, option.limits, option.help)
    console.print(table, soft_wrap=False)
    console.print()
