"""A recipe: everything that decides what a build makes, as a TOML file that says the same as the options."""

from __future__ import annotations

import dataclasses
import json
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from graphcompress.errors import DataError, UsageError, nearest

RECIPE = "recipe.toml"
"""Name of the recipe inside an artifact."""

_HEADER = """\
# Made by graphcompress. The same files come out again with
#   graphcompress optimize --recipe recipe.toml -o <folder>
# Paths are as they were given, read from the working folder. [sha256] names the inputs that it was made from:
# a build from other files is refused; remove a line to allow it.
"""


@dataclass(frozen=True)
class Recipe:
    """The options of one build that decide its result.

    Attributes:
        model: path of the ONNX file, as it was given.
        passes: pipeline text, such as ``kron,prune,int8``.
        target: target text, such as ``cpu``.
        data: calibration samples.
        tokenizer: for samples that are texts; found beside the model when None.
        metric: name of the task metric.
        eval_data: samples for the metric; ``data`` when None.
        train: samples that a pass learns from.
        teacher: ONNX file or checkpoint whose answers a pass learns; the model itself when None.
        task: for which a checkpoint is exported; what it says itself when None.
        seed: for everything random.
        allow: passes whose broken contract is accepted.
        require_coverage: least share (0-1) of the parameters that every lossy pass must touch.
        sha256: path → hash of an input that must not have changed.
    """

    model: str | None = None
    passes: str | None = None
    target: str = "cpu"
    data: str | None = None
    tokenizer: str | None = None
    metric: str | None = None
    eval_data: str | None = None
    train: str | None = None
    teacher: str | None = None
    task: str | None = None
    seed: int = 0
    allow: tuple[str, ...] = ()
    require_coverage: float = 0.0
    sha256: Mapping[str, str] = field(default_factory=dict)

    @property
    def files(self) -> tuple[str | None, ...]:
        """What the recipe reads, where it is named."""
        return (self.model, self.data, self.tokenizer, self.eval_data, self.train, self.teacher)

    def to_toml(self) -> str:
        """The recipe as the text of a TOML file; options without a value are left out."""
        lines = []
        for entry in dataclasses.fields(self):
            value = getattr(self, entry.name)
            if value is None or entry.name == "sha256" or value == ():
                continue
            lines.append(f"{entry.name} = {_toml(value)}")
        if self.sha256:
            lines += [
                "",
                "[sha256]",
                *(f"{_toml(path)} = {_toml(self.sha256[path])}" for path in sorted(self.sha256)),
            ]
        return _HEADER + "\n" + "\n".join(lines) + "\n"

    def check_inputs(self) -> None:
        """Compare the files of ``sha256`` with what lies there now.

        Raises:
            DataError: one of them was changed or is gone.
        """
        from graphcompress.graph.reading.hashes import sha256

        for path, wanted in self.sha256.items():
            if not Path(path).is_file():
                raise DataError(f"{path}: the recipe needs this file; run from the folder where it was made")
            if sha256(Path(path)) != wanted:
                raise DataError(
                    f"{path} is not the file that the recipe was made from (its SHA-256 differs); "
                    "restore it, or remove its line from [sha256] in the recipe"
                )


def read_recipe(path: str | Path) -> Recipe:
    """Read a recipe file; ``passes`` may be one text or a list, one pass in each entry.

    Raises:
        UsageError: no such file, not TOML, an unknown key or a value of the wrong type.
    """
    path = Path(path)
    try:
        content = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UsageError(f"{path}: cannot be read as a recipe ({error.strerror})") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise UsageError(f"{path}: not a TOML file ({error})") from error
    known = {entry.name for entry in dataclasses.fields(Recipe)}
    for key in content:
        if key not in known:
            raise UsageError(f"{path}: a recipe has no key {key!r}: {nearest(key, known)}")
    return Recipe(**{key: _checked(path, key, value) for key, value in content.items()})


def _checked(path: Path, key: str, value: object) -> Any:  # noqa: ANN401 - typed by its key
    if key == "passes" and _is_texts(value):
        return ",".join(value)  # type: ignore[arg-type]
    if key == "allow" and _is_texts(value):
        return tuple(value)  # type: ignore[arg-type]
    if key == "sha256" and isinstance(value, dict) and _is_texts(list(value.values())):
        return value
    if key == "seed" and type(value) is int:
        return value
    if key == "require_coverage" and type(value) in (int, float):
        return float(value)  # type: ignore[arg-type]
    if key not in ("allow", "sha256", "seed", "require_coverage") and isinstance(value, str):
        return value
    wanted = {
        "allow": "a list of texts",
        "sha256": "a table of texts",
        "seed": "a whole number",
        "require_coverage": "a number",
    }.get(key, "a text")
    raise UsageError(f"{path}: {key} must be {wanted}, got {value!r}")


def _is_texts(value: object) -> bool:
    return isinstance(value, list) and all(isinstance(item, str) for item in value)


def _toml(value: object) -> str:
    """A TOML value; a JSON string is a TOML basic string but for DEL, which TOML wants escaped."""
    if isinstance(value, str):
        return json.dumps(value, ensure_ascii=False).replace("\x7f", "\\u007f")
    if isinstance(value, (list, tuple)):
        return "[" + ", ".join(_toml(item) for item in value) + "]"
    return repr(value)
