"""How Kotlin and Swift spell what the loading examples say of a model: types, names, text."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass

from graphcompress.targets.mobile.interface import Port


@dataclass(frozen=True)
class Words:
    """One type: in the runtime's interface for each language, and as a number of the language.

    Attributes:
        buffer: of java.nio, which a tensor is made from, and which it is read as.
        array: of Kotlin, that a buffer wraps.
        element: of the runtime's Objective-C interface.
        number: of Swift.
    """

    buffer: str
    array: str
    element: str
    number: str


TYPES = {
    "int64": Words("LongBuffer", "LongArray", ".int64", "Int64"),
    "int32": Words("IntBuffer", "IntArray", ".int32", "Int32"),
    "float32": Words("FloatBuffer", "FloatArray", ".float", "Float"),
    "uint8": Words("ByteBuffer", "ByteArray", ".uInt8", "UInt8"),
    "int8": Words("ByteBuffer", "ByteArray", ".int8", "Int8"),
}

_KEYWORDS = (
    "as associatedtype break case catch class continue default defer deinit do dynamic else enum extension "
    "fallthrough false fileprivate for fun func guard if import in init inout interface internal is let nil "
    "null object open operator package private protocol public repeat rethrows return self static struct "
    "subscript super switch this throw throws true try typealias typeof val var when where while"
)
"""Words that mean something else in either language, and are no names."""
_OWN = "data environment inputs output outputs results run session tensor"
"""What the examples call their own things."""


def identifiers(ports: Sequence[Port]) -> dict[str, str]:
    """For every port a name that both languages take: ``input_ids`` as ``inputIds``, and none twice.

    The name with ``Shape`` behind it is free, too.
    """
    found: dict[str, str] = {}
    used = {*_KEYWORDS.split(), *_OWN.split()}
    for port in ports:
        plain = name = _camel(port.name)
        count = 1
        while not used.isdisjoint((name, f"{name}Shape")):
            count += 1
            name = f"{plain}{count}"
        used |= {name, f"{name}Shape"}
        found[port.name] = name
    return found


def kotlin_text(text: str) -> str:
    """``text`` as a literal, in which a dollar stands for itself."""
    return json.dumps(text).replace("$", "\\$")


def swift_text(text: str) -> str:
    """``text`` as a literal."""
    return json.dumps(text, ensure_ascii=False)


def _camel(name: str) -> str:
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in name).split()
    joined = "".join(word if index == 0 else word[:1].upper() + word[1:] for index, word in enumerate(words))
    return joined if joined[:1].isalpha() else f"input{joined}"
