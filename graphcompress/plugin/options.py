"""Options of passes and targets: dataclass fields ⇄ the text a user types.

``kron{rank=2 only=*ffn*}`` is a name and the fields that differ from their defaults. The text round-trips:
``parse(format_call(x)) == x``.
"""

from __future__ import annotations

import dataclasses
import json
import re
import types
import typing
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, Union

from graphcompress.errors import UsageError, nearest

T = TypeVar("T")
Convert = Callable[[Any], Any]

_CALL = re.compile(r"\s*([A-Za-z_][\w-]*)\s*(\{)?")
_KEY = re.compile(r"\s*([A-Za-z_]\w*)\s*=\s*")
_BARE = re.compile(r"[^\s{}\",]+")


class Quoted(str):
    """An option text that stood in quotes: it is that text, not a keyword such as ``none``."""

    __slots__ = ()


def option(
    default: Any,
    help: str,
    *,
    unit: str = "",
    choices: tuple[str, ...] = (),
    minimum: float | None = None,
    maximum: float | None = None,
    aliases: Mapping[str, Convert | None] | None = None,
) -> Any:
    """A dataclass field that is an option: its default, its help line, its unit and its range (inclusive).

    ``aliases`` are deprecated names of it, each with what makes a value of the option from one of the old
    name (None: the value stays as it is). They are accepted wherever the name is, and a note says so.
    """
    metadata = {"help": help, "unit": unit, "choices": choices, "minimum": minimum, "maximum": maximum}
    return dataclasses.field(default=default, metadata={**metadata, "aliases": aliases or {}})


def renamed(cls: type, name: str, values: Mapping[str, object]) -> tuple[dict[str, Any], tuple[str, ...]]:
    """``values`` under today's names of the options of ``cls``, and a note for each deprecated one.

    Raises:
        UsageError: an option is given under both names, or its value cannot be converted.
    """
    former = _former(cls)
    known = {key: value for key, value in values.items() if key not in former}
    notes = []
    for old in (key for key in values if key in former):
        new, convert = former[old]
        if new in known:
            raise UsageError(f"{name}: {old} is the deprecated name of {new}; give {new} alone")
        try:
            known[new] = values[old] if convert is None else convert(values[old])
        except (TypeError, ValueError, OverflowError) as error:
            where = f"{name}{{{old}={values[old]!r}}}"
            raise UsageError(f"{where}: does not make a value of {new}, which {old} is called now") from error
        notes.append(f"the option {old} is deprecated: write {new}={_format_value(known[new])}")
    return known, tuple(notes)


def _former(cls: type) -> dict[str, tuple[str, Convert | None]]:
    """Deprecated name → today's name, and what converts a value."""
    return {
        old: (field.name, convert)
        for field in dataclasses.fields(cls)
        for old, convert in field.metadata.get("aliases", {}).items()
    }


def format_call(name: str, instance: Any) -> str:
    """The text that makes ``instance`` again: its name and the options that are not at their defaults."""
    # Only what differs: the text of an older artifact stays right when an option is added.
    parts = [
        f"{field.name}={_format_value(value)}"
        for field in dataclasses.fields(instance)
        if (value := getattr(instance, field.name)) != field.default
    ]
    return f"{name}{{{' '.join(parts)}}}" if parts else name


def split_calls(text: str) -> list[tuple[str, dict[str, str]]]:
    """Split ``a,b{x=1 y="c d"}`` into ``[("a", {}), ("b", {"x": "1", "y": "c d"})]``.

    Raises:
        UsageError: the text does not follow that form; the message shows where.
    """
    text = text.rstrip()
    calls: list[tuple[str, dict[str, str]]] = []
    position = 0
    while position < len(text):
        match = _CALL.match(text, position)
        if match is None:
            raise _syntax_error(text, position, "expected a name")
        position = match.end()
        values: dict[str, str] = {}
        if match[2]:
            values, position = _split_options(text, position)
        calls.append((match[1], values))
        position = _skip_comma(text, position)
    return calls


def build(cls: type[T], name: str, values: Mapping[str, object]) -> T:
    """An instance of the dataclass ``cls`` from option texts (or from typed values, as in a recipe).

    Raises:
        UsageError: an option that does not exist, does not parse or is out of range.
    """
    fields = {field.name: field for field in dataclasses.fields(cls)}  # type: ignore[arg-type]
    former = _former(cls)
    hints = typing.get_type_hints(cls)
    typed: dict[str, Any] = {}
    for key, raw in values.items():
        today = former[key][0] if key in former else key
        if today not in fields:
            raise UsageError(f"{name} has no option {key!r}: {nearest(key, fields)}")
        typed[key] = _parse_value(raw, hints[today], f"{name}{{{key}}}")
    try:
        instance = cls(**typed)
    except TypeError as error:
        raise UsageError(f"{name}: {error}; give the options that it needs") from error
    check_options(name, instance)
    return instance


def check_options(name: str, instance: Any) -> None:
    """Raise :class:`UsageError` when an option of ``instance`` has another type, or is outside its range."""
    hints = typing.get_type_hints(type(instance))
    for field in dataclasses.fields(instance):
        value, limits = getattr(instance, field.name), field.metadata
        where = f"{name}{{{field.name}={_format_value(value)}}}"
        if not any(_is_of(value, arm) for arm in _arms(hints[field.name])):
            raise UsageError(f"{where}: must be {_wanted(hints[field.name])}, not {type(value).__name__}")
        if value is None:
            continue
        if limits.get("choices") and value not in limits["choices"]:
            raise UsageError(f"{where}: must be one of {', '.join(map(str, limits['choices']))}")
        # NaN is neither below a minimum nor above a maximum.
        if isinstance(value, float) and value != value:
            raise UsageError(f"{where}: must be a number")
        if isinstance(value, (int, float)) and not isinstance(value, bool):
            _check_range(where, value, limits)


def _check_range(where: str, value: float, limits: Mapping[str, Any]) -> None:
    low, high = limits.get("minimum"), limits.get("maximum")
    if low is not None and value < low:
        raise UsageError(f"{where}: must be at least {low}{_unit(limits)}")
    if high is not None and value > high:
        raise UsageError(f"{where}: must be at most {high}{_unit(limits)}")


def _arms(hint: Any) -> tuple[Any, ...]:
    """The types that an annotation allows."""
    if typing.get_origin(hint) in (Union, types.UnionType):
        return typing.get_args(hint)
    return (hint,)


def _is_of(value: object, arm: Any) -> bool:
    # To Python True is the number 1.
    if arm is float:
        return isinstance(value, (int, float)) and not isinstance(value, bool)
    if arm is int:
        return isinstance(value, int) and not isinstance(value, bool)
    return not isinstance(arm, type) or isinstance(value, arm)


def _wanted(hint: Any) -> str:
    words = {
        int: "a whole number",
        float: "a number",
        bool: "true or false",
        str: "text",
        types.NoneType: "none",
    }
    return " or ".join(words.get(arm, getattr(arm, "__name__", str(arm))) for arm in _arms(hint))


def _unit(limits: Mapping[str, Any]) -> str:
    return f" {limits['unit']}" if limits.get("unit") else ""


def _split_options(text: str, position: int) -> tuple[dict[str, str], int]:
    values: dict[str, str] = {}
    while True:
        rest = re.compile(r"[\s,]*").match(text, position)
        position = rest.end() if rest else position
        if text[position : position + 1] == "}":
            return values, position + 1
        match = _KEY.match(text, position)
        if match is None:
            raise _syntax_error(text, position, "expected key=value or '}'")
        value, position = _read_value(text, match.end())
        if match[1] in values:
            raise _syntax_error(text, match.start(), f"option {match[1]!r} is given twice")
        values[match[1]] = value


def _read_value(text: str, position: int) -> tuple[str, int]:
    if text[position : position + 1] == '"':
        try:
            # The rules of JSON say where a quoted text ends, whatever is escaped in it; it is written by
            # json.dumps, too.
            value, length = json.JSONDecoder().raw_decode(text[position:])
        except json.JSONDecodeError as error:
            raise _syntax_error(text, position, "the quoted text does not end") from error
        return Quoted(value), position + length
    match = _BARE.match(text, position)
    if match is None:
        raise _syntax_error(text, position, "expected a value")
    return match[0], match.end()


def _skip_comma(text: str, position: int) -> int:
    rest = text[position:].lstrip()
    if not rest:
        return len(text)
    position = len(text) - len(rest)
    if rest[0] != ",":
        raise _syntax_error(text, position, "expected ','")
    if not rest[1:].strip():
        raise _syntax_error(text, position, "nothing follows the ','")
    return position + 1


def _syntax_error(text: str, position: int, problem: str) -> UsageError:
    where = f"{problem} at character {position + 1} ({text[position : position + 12]!r})"
    advice = _advice(text)
    return UsageError(f"cannot read {text!r}: {where}" + (f"; {advice}" if advice else ""))


def _advice(text: str) -> str:
    """What was meant by a text in a form that other tools have; empty where nobody knows."""
    braced = text.translate(str.maketrans("([)]", "{{}}"))
    if braced != text:
        return f"options stand in braces: '{braced}'"
    if "{" not in text and (found := re.fullmatch(r"([A-Za-z]\w*)[\s:.]+(\w+=.+)", text)):
        return f"options stand in braces: '{found[1]}{{{found[2]}}}'"
    if "{" not in text and "=" in text:
        return "options stand in braces, and all of it in quotes, since shells read braces: 'name{key=value}'"
    if text.count("{") > text.count("}"):
        return "the braces do not close: put the whole text in quotes"
    joined = ",".join(filter(None, re.split(r"[\s,;+|>-]+", text)))
    return f"join them by commas: {joined}" if "{" not in text and joined != text else ""


def _parse_value(raw: object, hint: Any, where: str) -> Any:
    arms = _arms(hint)
    if types.NoneType in arms and (raw is None or (raw == "none" and not isinstance(raw, Quoted))):
        return None
    # The first type that takes the value wins: of ``int | str`` a number is tried first.
    for arm in arms:
        try:
            return _convert(raw, arm)
        except (TypeError, ValueError, OverflowError):
            continue
    raise UsageError(f"{where}: must be {_wanted(hint)}, not {raw!r}")


def _convert(raw: object, arm: Any) -> Any:
    """``raw`` as a value of the type ``arm``; raises ValueError where that would lose something."""
    boolean = _BOOLEANS.get(str(raw).lower())
    if arm is bool and boolean is not None:
        return boolean
    # ``bool("no")`` is True and ``int(2.7)`` is 2: what a type would take but change is refused.
    if (
        arm in (bool, types.NoneType)
        or isinstance(raw, bool)
        or (arm is int and isinstance(raw, float) and not raw.is_integer())
    ):
        raise ValueError(raw)
    return str(raw) if arm is str else arm(raw)


_BOOLEANS = {"true": True, "false": False, "yes": True, "no": False, "1": True, "0": False}


def _format_value(value: object) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if value is None:
        return "none"
    text = str(value)
    # The text none without quotes is read as no value.
    quote = not isinstance(value, (int, float)) and (not _BARE.fullmatch(text) or text == "none")
    return json.dumps(text) if quote else text
