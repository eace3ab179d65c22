"""A small builder of ONNX graphs, with the spellings that differ between opsets and exporters."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

AXES_AS_INPUT = 18
"""Since this opset reductions other than ReduceSum read their axes from an input."""

LAST = 2**63 - 1
"""The end of a Slice that takes all."""

Dim = int | str | None

T = TypeVar("T")


@dataclass(frozen=True)
class Part:
    """The entries of one stored tensor that belong to a unit: ``indices`` [units, entries] along ``axis``."""

    name: str
    axis: int
    indices: np.ndarray


@dataclass(frozen=True)
class Units:
    """Heads or FFN nodes of one block, as whoever wrote the model knows them.

    Attributes:
        kind: ``head`` or ``ffn``.
        size: how many there are.
        producers: weights and biases that make a unit.
        readers: weights that read it.
        plain: nothing but its readers sees a unit, so that one that is dead can go.
    """

    kind: str
    size: int
    producers: tuple[Part, ...]
    readers: tuple[Part, ...]
    plain: bool


@dataclass
class Graph:
    """A graph that grows; every method adds nodes and returns the name of the value that they compute."""

    rng: np.random.Generator
    opset: int
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: dict[str, np.ndarray] = field(default_factory=dict)
    inputs: list[onnx.ValueInfoProto] = field(default_factory=list)
    units: list[Units] = field(default_factory=list)
    inner: list[str] = field(default_factory=list)
    """Float values that may be outputs, too."""
    named: int = 0

    def name(self, stem: str) -> str:
        """A name that is not in use."""
        self.named += 1
        return f"{stem}_{self.named}"

    def chance(self, probability: float) -> bool:
        """True with this probability."""
        return bool(self.rng.random() < probability)

    def pick(self, choices: Sequence[T]) -> T:
        """One of ``choices``."""
        return choices[int(self.rng.integers(len(choices)))]

    # ---- values

    def input(self, name: str, shape: Sequence[Dim], kind: int = TensorProto.FLOAT) -> str:
        """An input of the graph."""
        self.inputs.append(helper.make_tensor_value_info(name, kind, shape))
        return name

    def stored(self, array: np.ndarray, stem: str = "const") -> str:
        """A stored tensor: an initializer, or a Constant node where it is small."""
        array = np.asarray(array)
        if array.size < 8 and self.chance(0.3):
            return self.op("Constant", value=numpy_helper.from_array(array))
        name = self.name(stem)
        self.weights[name] = array
        return name

    def ints(self, *numbers: int) -> str:
        """A stored vector of int64."""
        return self.stored(np.array(numbers, np.int64), "shape")

    def number(self, value: float) -> str:
        """A stored float scalar, of no axis or of one."""
        array = np.array(value, np.float32)
        return self.stored(array.reshape(1) if self.chance(0.2) else array, "scalar")

    def bound(self, value: float) -> str:
        """A stored float scalar of no axis."""
        return self.stored(np.array(value, np.float32), "bound")

    def weight(self, *shape: int, stem: str = "weight", gain: float = 1.0) -> str:
        """A random weight whose product with a vector of unit entries has entries near ``gain``."""
        fan = shape[-2] if len(shape) > 1 else 1
        name = self.name(stem)
        self.weights[name] = (self.rng.standard_normal(shape) * gain / np.sqrt(fan)).astype(np.float32)
        return name

    def vector(self, size: int, *, around: float = 0.0, stem: str = "bias") -> str:
        """A random vector with entries near ``around``."""
        name = self.name(stem)
        self.weights[name] = (around + 0.2 * self.rng.standard_normal(size)).astype(np.float32)
        return name

    # ---- operators

    def op(self, op_type: str, *inputs: str, domain: str = "", **attributes: object) -> str:
        """A node with one output."""
        return self.ops(op_type, *inputs, outputs=1, domain=domain, **attributes)[0]

    def ops(
        self, op_type: str, *inputs: str, outputs: int, domain: str = "", **attributes: object
    ) -> list[str]:
        """A node with several outputs."""
        made = [self.name(op_type.lower()) for _ in range(outputs)]
        self.nodes.append(
            helper.make_node(op_type, inputs, made, name=self.name("node"), domain=domain, **attributes)
        )
        return made

    def reduce(self, op_type: str, x: str, *axes: int, keepdims: int = 1) -> str:
        """A reduction over ``axes``."""
        if op_type == "ReduceSum" or self.opset >= AXES_AS_INPUT:
            return self.op(op_type, x, self.ints(*axes), keepdims=keepdims)
        return self.op(op_type, x, axes=list(axes), keepdims=keepdims)

    def split(self, x: str, axis: int, sizes: Sequence[int]) -> list[str]:
        """A Split into ``sizes``, or Slices."""
        if self.chance(0.3):
            ends = np.cumsum(sizes)
            return [
                self.slice(x, axis, int(end - size), int(end)) for size, end in zip(sizes, ends, strict=True)
            ]
        return self.ops("Split", x, self.ints(*sizes), outputs=len(sizes), axis=axis)

    def slice(self, x: str, axis: int, start: int, end: int, step: int = 1) -> str:
        """``x[start:end:step]`` along ``axis``."""
        return self.op(
            "Slice", x, *map(self.ints, (start, end, axis, step) if step != 1 else (start, end, axis))
        )

    def reshape(self, x: str, *sizes: int) -> str:
        """A Reshape: 0 copies a size; sometimes the copies are computed."""
        if 0 in sizes and self.chance(0.3):
            return self.op("Reshape", x, self.computed(x, sizes))
        return self.op("Reshape", x, self.ints(*sizes))

    def computed(self, x: str, sizes: Sequence[int]) -> str:
        """A shape whose zeros are read off ``x`` at run time."""
        parts = [self.size(x, axis) if size == 0 else self.ints(size) for axis, size in enumerate(sizes)]
        return self.op("Concat", *parts, axis=0)

    def size(self, x: str, axis: int) -> str:
        """The size of ``x`` along ``axis``, as a vector of one."""
        shape = self.op("Shape", x)
        if self.chance(0.5):
            return self.op("Gather", shape, self.ints(axis), axis=0)
        scalar = self.op("Gather", shape, self.stored(np.array(axis, np.int64)), axis=0)
        return self.op("Unsqueeze", scalar, self.ints(0))

    def add(self, a: str, b: str) -> str:
        """A sum, written either way round."""
        return self.op("Add", *((a, b) if self.chance(0.7) else (b, a)))

    def branch(self, nodes: Sequence[tuple[str, Sequence[str]]], rank: int | None = None) -> onnx.GraphProto:
        """A subgraph without inputs: a chain of operators over outer values; its last value is its output."""
        inner, last = [], ""
        for op_type, inputs in nodes:
            made = self.name(f"inner_{op_type.lower()}")
            inner.append(helper.make_node(op_type, [name or last for name in inputs], [made]))
            last = made
        shape = None if rank is None else [None] * rank
        info = helper.make_tensor_value_info(last, TensorProto.FLOAT, shape)
        return helper.make_graph(inner, self.name("branch"), [], [info])

    def loop(self, x: str, *, conditional: bool) -> str:
        """A Loop that runs twice over ``x``, with or without a condition."""
        count, goes_on, state = (self.name(stem) for stem in ("step", "on", "state"))
        on, new = self.name("on"), self.name("state")
        body = helper.make_graph(
            [helper.make_node("Identity", [goes_on], [on]), helper.make_node("Tanh", [state], [new])],
            self.name("body"),
            [
                helper.make_tensor_value_info(count, TensorProto.INT64, []),
                helper.make_tensor_value_info(goes_on, TensorProto.BOOL, []),
                helper.make_tensor_value_info(state, TensorProto.FLOAT, None),
            ],
            [
                helper.make_tensor_value_info(on, TensorProto.BOOL, []),
                helper.make_tensor_value_info(new, TensorProto.FLOAT, None),
            ],
        )
        steps = self.stored(np.array(2, np.int64), "steps")
        condition = self.stored(np.array(True), "condition") if conditional else ""
        return self.op("Loop", steps, condition, x, body=body)
