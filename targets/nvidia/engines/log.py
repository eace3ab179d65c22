"""The layers of an engine as TensorRT's detailed log lists them."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable
from dataclasses import dataclass

_LINE = re.compile(r"^Name: (?P<name>.*?), LayerType: (?P<kind>[^,]*), (?P<rest>.*)$")
_SECTION = re.compile(r"(Inputs|Constants|Outputs): \[")
_TYPE = re.compile(r"Datatype: (\w+)")
_NODE = re.compile(r"\[ONNX Layer: ([^\]]*)\]")
_TACTIC = re.compile(r"TacticName: ([^,]*)")
_INT8_KERNEL = re.compile(r"gemm_\w+_i8i32_")
"""Part of the names of kernels that sum int8 products in int32, whatever they write."""


@dataclass(frozen=True)
class EngineLayer:
    """One layer of an engine.

    Attributes:
        name: by the compiler.
        kind: such as ``gemm`` or ``kgen`` (a generated kernel).
        operands: data types of what it reads, inputs before constants.
        results: data types of what it writes.
        nodes: names of the ONNX nodes that it was made from.
        tactic: the kernel that was chosen; TensorRT for RTX leaves it open until it runs.
    """

    name: str
    kind: str
    operands: tuple[str, ...]
    results: tuple[str, ...]
    nodes: tuple[str, ...]
    tactic: str = ""

    @property
    def is_int8_product(self) -> bool:
        """Whether it multiplies int8 by int8; a fusion that reads int8 may turn it into float16 first.

        Both operands say so, or the kernel does: the whole of TensorRT lists no constants, and its fusions
        are products where their kernel is one.
        """
        both = "gemm" in self.kind.lower() and self.operands.count("Int8") >= 2
        return both or _INT8_KERNEL.search(self.tactic) is not None

    def __str__(self) -> str:
        return f"{self.kind} {self.name}: {', '.join(self.operands)} -> {', '.join(self.results)}"


def layers_in(log: Iterable[str]) -> list[EngineLayer]:
    """Every layer in the lines of a log, in the order of execution."""
    found = []
    for line in log:
        match = _LINE.match(line.strip())
        if match:
            parts = _sections(match["rest"])
            found.append(
                EngineLayer(
                    match["name"],
                    match["kind"],
                    (*_types(parts.get("Inputs", "")), *_types(parts.get("Constants", ""))),
                    _types(parts.get("Outputs", "")),
                    tuple(_NODE.findall(match["rest"])),
                    tactic[1].strip() if (tactic := _TACTIC.search(match["rest"])) else "",
                )
            )
    return found


def int8_products(layers: Iterable[EngineLayer], expected: Collection[str]) -> list[str]:
    """Which of the ``expected`` nodes are multiplied in int8; a layer may multiply for several of them."""
    made = {name for layer in layers if layer.is_int8_product for name in layer.nodes}
    return [name for name in expected if name in made]


def _sections(text: str) -> dict[str, str]:
    """What stands in the brackets behind Inputs, Constants and Outputs."""
    starts = list(_SECTION.finditer(text))
    ends = [match.start() for match in starts[1:]] + [len(text)]
    return {match[1]: text[match.end() : end] for match, end in zip(starts, ends, strict=True)}


def _types(text: str) -> tuple[str, ...]:
    return tuple(_TYPE.findall(text))
