"""A recipe: everything that decides what a build makes, as a TOML file that says the same as the options."""

from __future__ import annotations

import json
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from graphcompress.build.request import Request, deciding
from graphcompress.errors import DataError, UsageError, nearest

RECIPE = "recipe.toml"
"""Name of the recipe inside an artifact."""

_HEADER = """\
# Made by graphcompress. The same files come out again with
#   graphcompress optimize --recipe recipe.toml -o <folder>
# Paths are as they were given, read from the working folder. [sha256] names the inputs that it was made from:
# a build from other files is refused; remove a line to allow it. [pinned] holds what was measured and chosen:
# nothing is measured again; remove it to choose anew on this machine.
"""

TABLES = ("sha256", "pinned")
"""What a recipe knows of an earlier build, besides the options that were given."""


def recipe_text(recipe: Mapping[str, Any]) -> str:
    """The recipe of a :class:`Request` as the text of a TOML file; options without a value are left out."""
    lines = [
        f"{name} = {_toml(value)}"
        for name, value in recipe.items()
        if name not in TABLES and value is not None and value != []
    ]
    for table in TABLES:
        if known := recipe[table]:
            lines += ["", f"[{table}]", *(f"{_toml(name)} = {_toml(known[name])}" for name in sorted(known))]
    return _HEADER + "\n" + "\n".join(lines) + "\n"


def read_recipe(path: str | Path) -> dict[str, Any]:
    """Fields of a :class:`Request` from a recipe file; ``passes`` may be a list, one pass in each entry.

    Raises:
        UsageError: no such file, not TOML, an unknown key or a value of the wrong type.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read as a recipe ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError, RecursionError) as error:
        raise UsageError(f"{path}: not a TOML file ({error})") from error
    known = [field.name for field in deciding()]
    for key in content:
        if key not in known:
            raise UsageError(f"{path}: a recipe has no key {key!r}: {nearest(key, known)}")
    passes = content.get("passes")
    if isinstance(passes, list) and all(isinstance(item, str) for item in passes):
        content["passes"] = ",".join(passes)
    try:
        # Made only to be checked: what is given beside the recipe comes on top of it.
        Request(**content)
    except UsageError as error:
        raise UsageError(f"{path}: {error}") from error
    return content


def check_inputs(sha256: Mapping[str, str]) -> None:
    """Compare the files of a recipe with what lies there now.

    Raises:
        DataError: one of them was changed or is gone.
    """
    from graphcompress.files.reading.hashes import sha256 as hash_of

    for path, wanted in sha256.items():
        if not Path(path).is_file():
            raise DataError(f"{path}: the recipe needs this file; run from the folder where it was made")
        if hash_of(Path(path)) != wanted:
            raise DataError(
                f"{path} is not the file that the recipe was made from (its SHA-256 differs); "
                "restore it, or remove its line from [sha256] in the recipe"
            )


def _toml(value: object) -> str:
    """A TOML value; a JSON string is a TOML basic string but for DEL, which TOML wants escaped."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, list):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return str(value).lower() if isinstance(value, bool) else repr(value)
