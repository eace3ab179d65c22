"""Names of initializers as paths of modules and parameters, and names of values as those of nodes."""

from __future__ import annotations

import re
from collections.abc import Iterable

from torch import nn


def module_paths(names: Iterable[str]) -> dict[str, str]:
    """Initializer name → path in a module: the name itself wherever PyTorch allows it.

    A dot makes a submodule, as in a checkpoint. A part that is empty, that the module class uses itself, or
    that is a parameter and a submodule at once, gets underscores behind it.
    """
    taken: set[str] = set()
    folders: set[str] = set()
    paths = {}
    for name in names:
        path = ".".join(_part(part) for part in name.split("."))
        while path in taken or path in folders or any(folder in taken for folder in _folders(path)):
            path = f"{path}_" if path in taken or path in folders else f"{path.replace('.', '_')}"
        taken.add(path)
        folders.update(_folders(path))
        paths[name] = path
    return paths


def _part(part: str) -> str:
    return f"{part}_" if not part or hasattr(nn.Module, part) or part in _USED else part


_USED = frozenset(vars(nn.Module())) | {"graph", "code", "meta"}


def _folders(path: str) -> list[str]:
    parts = path.split(".")
    return [".".join(parts[:count]) for count in range(1, len(parts))]


def identifier(name: str) -> str:
    """``name`` as a Python identifier."""
    plain = re.sub(r"\W", "_", name) or "_"
    return f"_{plain}" if plain[0].isdigit() else plain
