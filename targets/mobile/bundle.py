"""What lies beside the model in an edge bundle: loading examples for Android, iOS and the browser, a page."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from importlib import metadata, resources
from pathlib import Path

import numpy as np

from graphcompress.targets.mobile.interface import Interface, Port
from graphcompress.targets.mobile.kotlin_and_swift import TYPES, identifiers, kotlin_text, swift_text

EXAMPLE_FILE = "example.json"

LARGEST_EXAMPLE = 16_384
"""An example of more numbers than this is left out, and the page starts with zeros."""

_FILES = {
    "GraphCompressModel.kt": "android/GraphCompressModel.kt",
    "GraphCompressModel.swift": "ios/GraphCompressModel.swift",
    "main.js": "web/main.js",
    "tokenizer.js": "web/tokenizer.js",
    "index.html": "web/index.html",
    "README.md": "README.md",
}


_BUILDS = {
    "cpu": "--minimal_build",
    "xnnpack": "--minimal_build extended --use_xnnpack",
    "nnapi": "--minimal_build extended --use_nnapi",
    "coreml": "--minimal_build extended --use_coreml",
}
"""Only an extended minimal build gives work to other providers than the CPU's."""


def unknown_types(interface: Interface) -> list[str]:
    """Inputs and the first output, with their types, that the loading examples have no words for."""
    ports = (*interface.inputs, interface.outputs[0])
    return [f"{port.name} ({port.type})" for port in ports if port.type not in TYPES]


def write_bundle(folder: Path, interface: Interface, *, provider: str, parts: str) -> list[str]:
    """Write the loading examples, the page and the README of the bundle; returns what it wrote.

    ``provider`` is what the examples ask for beside the CPU; ``parts`` is the table of partitions.
    """
    words = {
        "INPUTS": _table(interface.inputs),
        "OUTPUTS": _table(interface.outputs),
        "RETURNS": _returns(interface.outputs),
        "PARTITIONS": parts,
        "BUILD": _BUILDS[provider],
        "VERSION": metadata.version("onnxruntime"),
        **_kotlin(interface, provider),
        **_swift(interface, provider),
    }
    for template, name in _FILES.items():
        templates = resources.files("graphcompress.targets.mobile") / "templates"
        text = templates.joinpath(template).read_text("utf-8")
        # Marks of our own, for Kotlin, Swift and JavaScript are full of braces and dollars.
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


def _returns(outputs: Sequence[Port]) -> str:
    first, *others = [port.name for port in outputs]
    return f"Returns the output {first}" + (f" alone; the others: {', '.join(others)}." if others else ".")


def _kotlin(interface: Interface, provider: str) -> dict[str, str]:
    names, output = identifiers(interface.inputs), interface.outputs[0]
    buffer = TYPES[output.type].buffer
    parameters = [f"{names[port.name]}: {TYPES[port.type].array}" for port in interface.inputs]
    inputs = [f"            {_kotlin_input(port, names[port.name])}" for port in interface.inputs]
    return {
        "KOTLIN_PARAMETERS": ", ".join([*parameters, *_shapes(interface, names, "LongArray")]),
        "KOTLIN_INPUTS": "\n".join(inputs),
        "KOTLIN_PROVIDER": _KOTLIN_PROVIDERS[provider],
        "KOTLIN_OUTPUT": kotlin_text(output.name),
        "KOTLIN_RESULT": buffer,
        "KOTLIN_READ": buffer[:1].lower() + buffer[1:],
    }


def _swift(interface: Interface, provider: str) -> dict[str, str]:
    names, output = identifiers(interface.inputs), interface.outputs[0]
    parameters = [f"{names[port.name]}: [{TYPES[port.type].number}]" for port in interface.inputs]
    inputs = [f"            {_swift_input(port, names[port.name])}" for port in interface.inputs]
    return {
        "SWIFT_PARAMETERS": ", ".join([*parameters, *_shapes(interface, names, "[NSNumber]")]),
        "SWIFT_INPUTS": "\n".join(inputs),
        "SWIFT_PROVIDER": _SWIFT_PROVIDERS[provider],
        "SWIFT_OUTPUT": swift_text(output.name),
        "SWIFT_NUMBER": TYPES[output.type].number,
    }


def _shapes(interface: Interface, names: Mapping[str, str], kind: str) -> list[str]:
    return [f"{names[port.name]}Shape: {kind}" for port in interface.inputs if port.fixed is None]


def _kotlin_input(port: Port, name: str) -> str:
    shape = f"{name}Shape" if port.fixed is None else f"longArrayOf({', '.join(map(str, port.fixed))})"
    words = TYPES[port.type]
    extra = f", OnnxJavaType.{port.type.upper()}" if words.buffer == "ByteBuffer" else ""
    tensor = f"OnnxTensor.createTensor(environment, {words.buffer}.wrap({name}), {shape}{extra})"
    return f"{kotlin_text(port.name)} to {tensor},"


def _swift_input(port: Port, name: str) -> str:
    shape = f"{name}Shape" if port.fixed is None else f"[{', '.join(map(str, port.fixed))}]"
    return f"{swift_text(port.name)}: try tensor({name}, {TYPES[port.type].element}, {shape}),"


_KOTLIN_PROVIDERS = {
    "cpu": "// The CPU provider is always there.",
    "xnnpack": 'options.addXnnpack(mapOf("intra_op_num_threads" to "1")) // more threads on more fast cores',
    "nnapi": "options.addNnapi()",
    "coreml": "// CoreML is Apple's: on Android the CPU provider runs the model.",
}
_SWIFT_PROVIDERS = {
    "cpu": "// The CPU provider is always there.",
    "xnnpack": "try options.appendXnnpackExecutionProvider(with: ORTXnnpackExecutionProviderOptions())",
    "nnapi": "// NNAPI is Android's: on iOS the CPU provider runs the model.",
    "coreml": """let coreML = ORTCoreMLExecutionProviderOptions()
        coreML.createMLProgram = true  // has more operators than a neural network; iOS 15 and newer
        try options.appendCoreMLExecutionProvider(with: coreML)""",
}
