"""What a program on a device has to know of a model: names, types and sizes of its inputs and outputs."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx_ir as ir

from graphcompress.errors import UsageError
from graphcompress.graph.model import Model

INTERFACE_FILE = "interface.json"


@dataclass(frozen=True)
class Port:
    """One input or output.

    Attributes:
        name: in the graph.
        type: of its elements, as the runtime calls it: ``int64``, ``float32`` …
        sizes: a number, or the name of a variable size.
        fixed: the same with the numbers that variable sizes were given; None where one is variable.
    """

    name: str
    type: str
    sizes: tuple[int | str, ...]
    fixed: tuple[int, ...] | None


@dataclass(frozen=True)
class Interface:
    """Inputs and outputs, in the graph's order."""

    inputs: tuple[Port, ...]
    outputs: tuple[Port, ...]

    def write(self, folder: Path) -> None:
        """Write ``interface.json`` into ``folder``."""
        text = json.dumps(asdict(self), indent=1, ensure_ascii=False)
        (folder / INTERFACE_FILE).write_text(text + "\n", encoding="utf-8")


def interface_of(model: Model, sizes: Mapping[str, int]) -> Interface:
    """The interface of ``model``, whose variable sizes are to be given the numbers ``sizes``."""
    return Interface(
        tuple(_port(value, sizes) for value in model.graph.inputs),
        tuple(_port(value, sizes) for value in model.graph.outputs),
    )


def model_of(interface: Interface) -> Model:
    """A model with these inputs and outputs and no node, for what asks a model for its interface."""
    names = {text: kind for kind, text in _TYPES.items()}

    def value(port: Port) -> ir.Value:
        sizes = port.fixed if port.fixed is not None else port.sizes
        dtype = names.get(port.type) or ir.DataType[port.type.upper()]
        return ir.Value(name=port.name, shape=ir.Shape(sizes), type=ir.TensorType(dtype))

    inputs, outputs = ([value(port) for port in ports] for ports in (interface.inputs, interface.outputs))
    # Without a node any opset will do.
    graph = ir.Graph(inputs, outputs, nodes=[], opset_imports={"": 21}, name="interface")
    return Model(ir.Model(graph, ir_version=10))


def read_interface(folder: Path) -> Interface:
    """The interface that was written into ``folder``.

    Raises:
        UsageError: the file is missing or damaged.
    """
    path = folder / INTERFACE_FILE
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
        return Interface(tuple(map(_read, content["inputs"])), tuple(map(_read, content["outputs"])))
    except (OSError, ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise UsageError(f"{path}: not readable ({error}); build the artifact again") from error


def _read(entry: Mapping[str, object]) -> Port:
    fixed = entry["fixed"]
    return Port(
        str(entry["name"]),
        str(entry["type"]),
        tuple(entry["sizes"]),  # type: ignore[arg-type]
        tuple(fixed) if isinstance(fixed, list) else None,
    )


def _port(value: ir.Value, sizes: Mapping[str, int]) -> Port:
    named = tuple(
        dim if isinstance(dim, int) else str(dim.value or f"axis{axis}")
        for axis, dim in enumerate(value.shape or ())
    )
    numbers = [size if isinstance(size, int) else sizes.get(size) for size in named]
    known = [number for number in numbers if number is not None]
    fixed = tuple(known) if len(known) == len(numbers) else None
    return Port(value.name or "", _TYPES.get(value.dtype, str(value.dtype).lower()), named, fixed)


_TYPES: dict[ir.DataType | None, str] = {
    ir.DataType.FLOAT: "float32",
    ir.DataType.FLOAT16: "float16",
    ir.DataType.DOUBLE: "float64",
}
"""Types that ONNX names otherwise than everyone else."""
