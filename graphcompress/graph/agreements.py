"""What caller and model agreed on beside the interface that came in; it is written in the file."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from fnmatch import fnmatchcase

from graphcompress.errors import UsageError, nearest
from graphcompress.files.parts import Part, handed_on
from graphcompress.graph.model import Model

LONGEST = "graphcompress.max_length"
"""Entry of a file's metadata: tokens of the longest input, past ones included."""

LEFT_OUT = "graphcompress.left_out"
"""Entry of a file's metadata: names of outputs that the file it was made of has, a line each."""


def agreed_length(model: Model) -> int | None:
    """Tokens of the longest input that a caller promised to give; None where nothing was promised."""
    return min((int(text) for _, text in _entries(model, LONGEST)), default=None)


def agree_on_length(model: Model, tokens: int) -> None:
    """Take down that no input has more than ``tokens``; of several promises the shortest holds."""
    agreed = agreed_length(model)
    text = str(tokens if agreed is None else min(agreed, tokens))
    model.ir.metadata_props.update({part + LONGEST: text for part in _prefixes(model)})


def left_out(model: Model) -> tuple[str, ...]:
    """Outputs of the model that came in which :func:`leave_out` took away."""
    return tuple(part + name for part, text in _entries(model, LEFT_OUT) for name in text.splitlines())


def leave_out(model: Model, kept: str) -> None:
    """Take the outputs that no glob of ``kept`` names from the interface; nodes and weights stay for now.

    Names are those of the files, globs stand with commas between them. What parts hand to each other and to
    the next step (hidden states of an encoder, keys and values) is no caller's to give up, and stays.

    Raises:
        UsageError: a glob names no output, or nothing would be left of a part.
    """
    handed = {source for source, _ in handed_on(model.parts)}
    names = {value.name or "": _own_name(model, value.name or "") for value in model.graph.outputs}
    globs = [glob.strip() for glob in kept.split(",")]
    known = {*names.values(), *(_own_name(model, name) for name in left_out(model))}
    for glob in globs:
        if not any(fnmatchcase(name, glob) for name in known):
            raise UsageError(f"the model has no output {glob!r}: {nearest(glob, known)}")
    gone = [
        name
        for name, own in names.items()
        if name not in handed and not any(fnmatchcase(own, glob) for glob in globs)
    ]
    for prefix in _prefixes(model):
        mine = {name for name in names if name.startswith(prefix)}
        if mine and mine <= set(gone):
            raise UsageError(
                f"outputs={kept}: nothing is left of {prefix.rstrip('/') or 'the model'}, which returns "
                f"{', '.join(sorted(map(names.__getitem__, mine)))}; name one of these, too"
            )
    _take_away(model, gone)


def _take_away(model: Model, gone: list[str]) -> None:
    model.graph.outputs[:] = [value for value in model.graph.outputs if value.name not in gone]
    for prefix in _prefixes(model):
        before = model.ir.metadata_props.get(prefix + LEFT_OUT, "").splitlines()
        mine = [name.removeprefix(prefix) for name in gone if name.startswith(prefix)]
        if mine:
            model.ir.metadata_props[prefix + LEFT_OUT] = "\n".join([*before, *mine])
    returned = {_own_name(model, value.name or "") for value in model.graph.outputs}
    model.parts = tuple(_returning(part, returned) for part in model.parts)


def _returning(part: Part, names: set[str]) -> Part:
    """``part`` with its outputs of these ``names``; so is the merged decoder that it is a branch of."""
    whole = None if part.whole is None else _returning(part.whole, names)
    return replace(part, outputs=tuple(value for value in part.outputs if value.name in names), whole=whole)


def _prefixes(model: Model) -> tuple[str, ...]:
    """What names begin with, of each part; nothing for a model of one file."""
    return tuple(part.prefix for part in model.parts) or ("",)


def _own_name(model: Model, name: str) -> str:
    prefix = next((each for each in _prefixes(model) if each and name.startswith(each)), "")
    return name.removeprefix(prefix)


def _entries(model: Model, key: str) -> Iterator[tuple[str, str]]:
    """Prefix of a part → what the metadata of its file says of ``key``."""
    props = model.ir.metadata_props
    return ((prefix, props[prefix + key]) for prefix in _prefixes(model) if prefix + key in props)
