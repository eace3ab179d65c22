"""Packages that are installed for one test, to add something to this one."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path

import pytest


def installed(
    monkeypatch: pytest.MonkeyPatch,
    site: Path,
    package: str,
    source: str = "",
    **entries: Mapping[str, str],
) -> None:
    """Install a package of one module in the folder ``site``.

    ``entries``: the end of a group (``passes``) → name → place, as in ``[project.entry-points]``.
    """
    metadata = site / f"{package}-1.0.dist-info"
    metadata.mkdir(parents=True)
    (metadata / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {package}\nVersion: 1.0\n")
    lines = []
    for kind, places in entries.items():
        lines += [f"[graphcompress.{kind}]", *(f"{name} = {place}" for name, place in places.items())]
    (metadata / "entry_points.txt").write_text("\n".join(lines))
    if source:
        (site / f"{package}.py").write_text(source, encoding="utf-8")
        monkeypatch.delitem(sys.modules, package, raising=False)
    monkeypatch.syspath_prepend(str(site))
