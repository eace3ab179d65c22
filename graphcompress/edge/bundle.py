"""What lies beside the model in an edge bundle: loading examples for Android, iOS and the browser, a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from importlib import metadata, resources
from pathlib import Path

import numpy as np

from graphcompress.edge.interface import Interface, Port

EXAMPLE_FILE = "example.json"

LARGEST_EXAMPLE = 16_384
"""Numbers in an example; a larger one is left out, and the page starts with zeros."""

_FILES = {
    "GraphCompressModel.kt": "android/GraphCompressModel.kt",
    "GraphCompressModel.swift": "ios/GraphCompressModel.swift",
    "main.js": "web/main.js",
    "index.html": "web/index.html",
    "README.md": "README.md",
}


@dataclass(frozen=True)
class _Words:
    """How one language spells a type: of the runtime, and of a number."""

    kotlin: str
    swift: str
    swift_number: str


_TYPES = {
    "int64": _Words("LongBuffer", ".int64", "Int64"),
    "int32": _Words("IntBuffer", ".int32", "Int32"),
    "float32": _Words("FloatBuffer", ".float", "Float"),
    "uint8": _Words("ByteBuffer", ".uInt8", "UInt8"),
    "int8": _Words("ByteBuffer", ".int8", "Int8"),
}
_KOTLIN_ARRAYS = {
    "LongBuffer": "LongArray",
    "IntBuffer": "IntArray",
    "FloatBuffer": "FloatArray",
    "ByteBuffer": "ByteArray",
}


def unknown_types(interface: Interface) -> list[str]:
    """Inputs, with their types, that the loading examples have no words for."""
    return [f"{port.name} ({port.type})" for port in interface.inputs if port.type not in _TYPES]


def write_bundle(folder: Path, interface: Interface, *, provider: str, parts: str) -> list[str]:
    """Write the loading examples, the page and the README of the bundle; returns what it wrote.

    ``provider`` is what the examples ask for beside the CPU; ``parts`` is the table of partitions.
    """
    words = {
        "INPUTS": _table(interface.inputs),
        "OUTPUTS": _table(interface.outputs),
        "OUTPUT": interface.outputs[0].name,
        "PARTITIONS": parts,
        "VERSION": metadata.version("onnxruntime"),
        "KOTLIN_PARAMETERS": ", ".join(
            f"{_identifier(p.name)}: {_kotlin_array(p)}" for p in interface.inputs
        ),
        "KOTLIN_INPUTS": "\n".join(f"            {_kotlin_input(p)}" for p in interface.inputs),
        "KOTLIN_PROVIDER": _KOTLIN_PROVIDERS[provider],
        "SWIFT_PARAMETERS": ", ".join(
            f"{_identifier(p.name)}: [{_words(p).swift_number}]" for p in interface.inputs
        ),
        "SWIFT_INPUTS": "\n".join(f"            {_swift_input(p)}" for p in interface.inputs),
        "SWIFT_PROVIDER": _SWIFT_PROVIDERS[provider],
    }
    kotlin_shapes = _shape_parameters(interface, "LongArray")
    swift_shapes = _shape_parameters(interface, "[NSNumber]")
    words |= {"KOTLIN_SHAPES": kotlin_shapes, "SWIFT_SHAPES": swift_shapes}
    for template, name in _FILES.items():
        text = resources.files("graphcompress.edge").joinpath("templates", template).read_text("utf-8")
        for key, value in words.items():
            text = text.replace(f"@{key}@", value)
        path = folder / name
        path.parent.mkdir(exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return list(_FILES.values())


def write_example(folder: Path, feed: Mapping[str, np.ndarray], outputs: Mapping[str, np.ndarray]) -> bool:
    """Write one feed and what this machine's runtime answers, when it is small; whether it was."""
    if sum(array.size for array in (*feed.values(), *outputs.values())) > LARGEST_EXAMPLE:
        return False
    content = {"inputs": _plain(feed), "outputs": _plain(outputs)}
    (folder / EXAMPLE_FILE).write_text(json.dumps(content) + "\n", encoding="utf-8")
    return True


def _plain(arrays: Mapping[str, np.ndarray]) -> dict[str, dict[str, object]]:
    return {
        name: {"type": str(array.dtype), "dims": list(array.shape), "data": _numbers(array)}
        for name, array in arrays.items()
    }


def _numbers(array: np.ndarray) -> list[object]:
    """Numbers in as few digits as give the same float32 again."""
    if array.dtype == np.float32:
        return [float(np.format_float_scientific(x, unique=True)) for x in array.reshape(-1)]
    return list(array.reshape(-1).tolist())


def _table(ports: Sequence[Port]) -> str:
    lines = ["| name | type | sizes |", "|---|---|---|"]
    for port in ports:
        sizes = " × ".join(map(str, port.fixed if port.fixed is not None else port.sizes)) or "one number"
        lines.append(f"| `{port.name}` | {port.type} | {sizes} |")
    return "\n".join(lines)


def _identifier(name: str) -> str:
    """``input_ids`` as ``inputIds``: a name that every language takes."""
    words = "".join(c if c.isascii() and c.isalnum() else " " for c in name).split()
    joined = "".join(word if index == 0 else word[:1].upper() + word[1:] for index, word in enumerate(words))
    return joined if joined[:1].isalpha() else f"input{joined}"


def _words(port: Port) -> _Words:
    return _TYPES[port.type]


def _kotlin_array(port: Port) -> str:
    return _KOTLIN_ARRAYS[_words(port).kotlin]


def _shape_parameters(interface: Interface, kind: str) -> str:
    return "".join(f", {_identifier(p.name)}Shape: {kind}" for p in interface.inputs if p.fixed is None)


def _kotlin_input(port: Port) -> str:
    name = _identifier(port.name)
    shape = f"{name}Shape" if port.fixed is None else f"longArrayOf({', '.join(map(str, port.fixed))})"
    buffer = f"{_words(port).kotlin}.wrap({name})"
    extra = f", OnnxJavaType.{port.type.upper()}" if _words(port).kotlin == "ByteBuffer" else ""
    return f'"{port.name}" to OnnxTensor.createTensor(environment, {buffer}, {shape}{extra}),'


def _swift_input(port: Port) -> str:
    name = _identifier(port.name)
    shape = f"{name}Shape" if port.fixed is None else f"[{', '.join(map(str, port.fixed))}]"
    return f'"{port.name}": try tensor({name}, {_words(port).swift}, {shape}),'


_KOTLIN_PROVIDERS = {
    "cpu": "// The CPU provider is always there.",
    "xnnpack": 'options.addXnnpack(mapOf("intra_op_num_threads" to "1"))',
    "nnapi": "options.addNnapi()",
    "coreml": "// CoreML is Apple's: on Android the CPU provider runs the model.",
}
_SWIFT_PROVIDERS = {
    "cpu": "// The CPU provider is always there.",
    "xnnpack": "try options.appendXnnpackExecutionProvider(with: ORTXnnpackExecutionProviderOptions())",
    "nnapi": "// NNAPI is Android's: on iOS the CPU provider runs the model.",
    "coreml": "try options.appendCoreMLExecutionProvider(with: ORTCoreMLExecutionProviderOptions())",
}
