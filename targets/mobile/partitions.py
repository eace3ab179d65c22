"""How a graph is split between a device's provider and the CPU, by the runtime's own partitioner.

For NNAPI and CoreML the runtime ships the lists of operators with its usability checker, and both are used.
It has none for XNNPACK: there the partitioner is given the provider's documented rules, which are below.

The lists go by operator alone. What they ask of an operator besides is reported as conditions, and one that
the lists do not name is counted here: NNAPI multiplies with a stored weight only, not with one that
DequantizeLinear restores.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import onnx

from graphcompress.files.temporary import Temporary
from graphcompress.graph.model import Model

PARTITIONS_FILE = "partitions.json"
_FLOAT = onnx.TensorProto.FLOAT
RULES_OF_XNNPACK = "own rules, read from the sources of the provider"
RULES_OF_CHECKER = "onnxruntime.tools.mobile_helpers"
NNAPI = "NNAPI"


@dataclass(frozen=True)
class Partitions:
    """What one provider would take of a graph.

    Attributes:
        provider: its name.
        rules: where the list of operators is from.
        nodes: of the graph.
        supported: nodes that the provider takes.
        partitions: pieces that those form; every piece is a way to the provider and back.
        unsupported: operators that stay on the CPU.
        dynamic: nodes that stay there because a size is not known.
        restored: products among the supported ones that the provider leaves to the CPU all the same, since
            their weight is restored from int8; by the sources of the provider, not by the list.
        conditions: what the list asks of the operators taken, besides: it is not checked.
    """

    provider: str
    rules: str
    nodes: int
    supported: int
    partitions: int
    unsupported: tuple[str, ...]
    dynamic: int
    restored: int
    conditions: tuple[str, ...]


def partitions(model: Model) -> list[Partitions]:
    """What XNNPACK, NNAPI and CoreML (as neural network, as ML program) would take of ``model``."""
    from onnxruntime.tools.mobile_helpers import usability_checker as checker

    proto = _without_weights(model)
    shapes = {item.name: item for item in (*proto.graph.input, *proto.graph.value_info, *proto.graph.output)}
    network, program = "coreml_supported_neuralnetwork_ops.md", "coreml_supported_mlprogram_ops.md"
    xnnpack = _Xnnpack(shapes, {item.name for item in proto.graph.initializer})
    known = bool(proto.graph.value_info)
    found = {
        ("XNNPACK", RULES_OF_XNNPACK): checker.check_partitioning(proto.graph, xnnpack, False),
        (NNAPI, RULES_OF_CHECKER): checker.check_nnapi_partitions(proto, known),
        ("CoreML NeuralNetwork", RULES_OF_CHECKER): checker.check_coreml_partitions(proto, known, network),
        ("CoreML MLProgram", RULES_OF_CHECKER): checker.check_coreml_partitions(proto, known, program),
    }
    return [
        Partitions(
            provider,
            rules,
            info.num_nodes,
            info.num_supported_nodes,
            info.num_partitions,
            tuple(sorted(info.unsupported_ops)),
            info.nodes_unsupported_due_to_dynamic_input,
            _restored(info.supported_groups) if provider == NNAPI else 0,
            tuple(_condition(text) for text in info.supported_ops_checker.get_caveats()),
        )
        for (provider, rules), info in found.items()
    ]


def table(before: Sequence[Partitions], after: Sequence[Partitions]) -> str:
    """The report as a table in Markdown: what each provider takes of the graph before and after lowering."""
    lines = [
        "| provider | nodes taken before | pieces before | nodes taken | pieces | stays on the CPU | rules |",
        "|---|---|---|---|---|---|---|",
    ]
    for old, new in zip(before, after, strict=True):
        stays = ", ".join(name.removeprefix("ai.onnx:") for name in new.unsupported)
        if new.dynamic:
            stays += f"{'; ' if stays else ''}{new.dynamic} nodes of variable size (fix them with shape)"
        if new.restored:
            stays += f"{'; ' if stays else ''}{new.restored} of the products taken: int8 weights"
        lines.append(
            f"| {new.provider} | {old.supported} of {old.nodes} | {old.partitions} | {new.supported} of "
            f"{new.nodes} | {new.partitions} | {stays or 'nothing'} | {new.rules} |"
        )
    return "\n".join(lines)


def conditions(parts: Sequence[Partitions]) -> list[str]:
    """A line for every provider whose list asks more than the operator, which nothing here checks."""
    return [f"{part.provider}: {'; '.join(part.conditions)}" for part in parts if part.conditions]


def described(before: Sequence[Partitions], after: Sequence[Partitions], advice: Sequence[str]) -> str:
    """The table, the advice, and what the lists leave unchecked, in Markdown."""
    lines = [table(before, after), "", *(f"- {line}" for line in advice)]
    asked = conditions(after)
    if asked:
        lines += ["", "The lists go by operator. What they ask besides is not checked:", ""]
        lines += [f"- {line}" for line in asked]
    return "\n".join(lines)


def write_partitions(
    folder: Path, before: Sequence[Partitions], after: Sequence[Partitions], advice: Sequence[str]
) -> None:
    """Write the report as ``partitions.json``."""
    content = {
        "before": [asdict(item) for item in before],
        "after": [asdict(item) for item in after],
        "advice": list(advice),
    }
    text = json.dumps(content, indent=1, ensure_ascii=False)
    (folder / PARTITIONS_FILE).write_text(text + "\n", encoding="utf-8")


def _condition(text: str) -> str:
    """``ai.onnx:Gather:Some condition.`` as ``Gather: Some condition``."""
    operator, _, said = text.removeprefix("ai.onnx:").rstrip(" .").partition(":")
    return f"{operator}: {said.strip()}"


def _restored(groups: Sequence[Sequence[onnx.NodeProto]]) -> int:
    """Products whose second operand DequantizeLinear makes."""
    nodes = [node for group in groups for node in group]
    restored = {name for node in nodes if node.op_type == "DequantizeLinear" for name in node.output}
    return sum(node.op_type in ("MatMul", "Gemm") and node.input[1] in restored for node in nodes)


class _Xnnpack:
    """Which nodes the XNNPACK provider takes, in the form that the runtime's partitioner asks."""

    def __init__(self, shapes: Mapping[str, onnx.ValueInfoProto], constants: set[str]) -> None:
        self._shapes, self._constants = shapes, constants

    def is_op_supported(self, node: onnx.NodeProto) -> bool:
        """Float products of a matrix and a constant one; a Softmax along a last axis of known size."""
        if node.domain or node.op_type not in ("MatMul", "Gemm", "Softmax"):
            return False
        if node.op_type == "Softmax":
            sizes = self._sizes(node.input[0])
            axis = next((item.i for item in node.attribute if item.name == "axis"), -1)
            return bool(sizes) and axis in (-1, len(sizes) - 1) and sizes[-1] > 0
        x, weight = node.input[:2]
        return weight in self._constants and len(self._sizes(x)) == 2 and self._is_float(x)

    def get_caveats(self) -> list[str]:
        """None that the rules leave open."""
        return []

    def _sizes(self, name: str) -> list[int]:
        item = self._shapes.get(name)
        return [] if item is None else [dim.dim_value for dim in item.type.tensor_type.shape.dim]

    def _is_float(self, name: str) -> bool:
        item = self._shapes.get(name)
        return item is not None and item.type.tensor_type.elem_type == _FLOAT


def _without_weights(model: Model) -> onnx.ModelProto:
    """The graph as a message, its weights left in a file: none of the rules reads them."""
    with Temporary() as folder:
        path = folder / "model.onnx"
        model.write(path, external="model.data")
        return onnx.load(path, load_external_data=False)
