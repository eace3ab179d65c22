"""``graphcompress passes`` and ``graphcompress targets``: what is installed."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Annotated

import typer

from graphcompress.cli.terminal import Json, out, print_json

if TYPE_CHECKING:
    from graphcompress.plugin.reference import Entry
    from graphcompress.plugin.registry import Kind

Name = Annotated[str | None, typer.Argument(help="Show only this one, with its whole description.")]


def passes(name: Name = None, json: Json = False) -> None:
    """List the installed passes with their contracts and options."""
    _show("passes", name, json)


def targets(name: Name = None, json: Json = False) -> None:
    """List the installed targets with what they can run and their options."""
    _show("targets", name, json)


def _show(kind: Kind, name: str | None, json: bool) -> None:
    from graphcompress.plugin import reference, registry

    if name is None:
        found = reference.entries(kind)
    else:
        load = registry.pass_class if kind == "passes" else registry.target_class
        found = [reference.describe(load(name))]
    if json:
        print_json([dataclasses.asdict(entry) for entry in found])
        return
    for entry in found:
        _print(entry, whole=name is not None)


def _print(entry: Entry, *, whole: bool) -> None:
    from rich.table import Table

    console = out()
    console.print(f"{entry.name}: {entry.text if whole else entry.summary}")
    if entry.contract:
        console.print(f"  contract: {entry.contract}")
    if entry.capabilities:
        console.print(f"  runs, with default options: {entry.capabilities}")
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
