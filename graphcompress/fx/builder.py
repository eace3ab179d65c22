"""Writes a torch.fx graph operator by operator; asks for an ONNX value as tensor, as numbers or as array."""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from graphcompress.errors import UnsupportedModelError
from graphcompress.fx.names import identifier
from graphcompress.fx.sizes import Item, Sizes, sizes_of_array
from graphcompress.fx.stored import Stored
from graphcompress.fx.types import compute_type, stored_type

Operand = fx.Node | Sizes
Argument = Any


class FxBuilder:
    """One graph while it is being written.

    Attributes:
        graph: the torch.fx graph.
        stored: parameters and buffers behind the initializers.
        quantised: integer values of the ONNX graph that are kept as floats, so that gradients flow.
    """

    def __init__(self, stored: Stored) -> None:
        self.graph = fx.Graph()
        self.stored = stored
        self.quantised: set[ir.Value] = set()
        self._operands: dict[ir.Value, Operand] = {}
        self._tensors: dict[ir.Value, fx.Node] = {}
        self._sizes: dict[tuple[ir.Value, int], fx.Node] = {}
        self._shared: dict[tuple[Any, ...], fx.Node] = {}
        self._device: fx.Node | None = None

    # ---- writing

    def call(self, function: Callable[..., Any], *args: Argument, **kwargs: Argument) -> fx.Node:
        """A node that calls ``function``."""
        return self.graph.call_function(function, args, kwargs)

    def method(self, name: str, *args: Argument, **kwargs: Argument) -> fx.Node:
        """A node that calls a method of a tensor, the first argument."""
        return self.graph.call_method(name, args, kwargs)

    def shared(self, function: Callable[..., Any], *args: Argument) -> fx.Node:
        """As :meth:`call`; the same arguments give the same node again."""
        key = (function, *args)
        if key not in self._shared:
            self._shared[key] = self.call(function, *args)
        return self._shared[key]

    def shared_method(self, name: str, x: fx.Node) -> fx.Node:
        """As :meth:`method`; the same tensor gives the same node again."""
        key = (name, x)
        if key not in self._shared:
            self._shared[key] = self.method(name, x)
        return self._shared[key]

    def item(self, parts: fx.Node, index: int) -> fx.Node:
        """One of the results of a node that gives several."""
        return self.call(operator.getitem, parts, index)

    def placeholder(self, value: ir.Value) -> None:
        """A graph input, as an argument of its name."""
        if compute_type(value.dtype) is None or not isinstance(value.type, ir.TensorType):
            self.refuse_type(value)
        self._operands[value] = self.graph.placeholder(identifier(value.name or "input"))

    def convert_inputs(self) -> None:
        """Let inputs of a type that is computed in a wider one be converted; after the last placeholder."""
        for value, node in list(self._operands.items()):
            if stored_type(value.dtype) != compute_type(value.dtype):
                self._operands[value] = self.method("to", node, compute_type(value.dtype))

    def set(self, value: ir.Value, operand: Operand) -> None:
        """Remember what stands for an ONNX value; a node takes over its name."""
        self._operands[value] = operand
        if isinstance(operand, fx.Node) and operand.op.startswith("call") and "value" not in operand.meta:
            operand.meta["value"] = value.name
            operand._rename(identifier(value.name or operand.name))

    @property
    def device(self) -> fx.Node:
        """The device of the inputs."""
        if self._device is None:
            first = next(node for node in self.graph.nodes if node.op == "placeholder")
            with self.graph.inserting_after(_last_placeholder(self.graph)):
                self._device = self.call(getattr, first, "device")
                self._device._rename("device")
        return self._device

    # ---- reading

    def tensor(self, value: ir.Value | None) -> fx.Node:
        """The tensor that stands for ``value``."""
        if value is None:
            raise ValueError("an operand that is not optional is missing")
        operand = self._operands.get(value)
        if isinstance(operand, fx.Node):
            return operand
        if value not in self._tensors:
            self._tensors[value] = (
                self.stored.node(self, value) if operand is None else self._materialised(operand)
            )
        return self._tensors[value]

    def optional(self, node: ir.Node, index: int) -> ir.Value | None:
        """Input ``index`` of ``node``, when it is given."""
        return node.inputs[index] if index < len(node.inputs) else None

    def operand(self, value: ir.Value | None) -> fx.Node | float:
        """``value`` as a tensor; as a plain number, when it is one that is known or the size of a tensor."""
        number = None if value is None else self.stored.number(value)
        if number is not None:
            return number
        sizes = self.sizes(value)
        if sizes is not None and sizes.scalar and isinstance(sizes.items[0], fx.Node):
            return sizes.items[0]
        return self.tensor(value)

    def array(self, value: ir.Value | None) -> np.ndarray | None:
        """The numbers of a stored value, or None."""
        return None if value is None else self.stored.array(value)

    def sizes(self, value: ir.Value | None) -> Sizes | None:
        """``value`` as Python numbers, or None: it is a tensor of the graph."""
        if value is None:
            return None
        operand = self._operands.get(value)
        if isinstance(operand, Sizes):
            return operand
        if operand is not None:
            return None
        array = self.stored.small_integers(value)
        return None if array is None else sizes_of_array(array)

    def ints(self, value: ir.Value | None) -> Sequence[Item] | fx.Node:
        """``value`` as a list of integers; a node that gives the list, when they are in a tensor."""
        sizes = self.sizes(value)
        if sizes is not None:
            return sizes.items
        if value is not None and value.shape is not None and not len(value.shape):
            return [self.method("item", self.tensor(value))]
        listed = self.method("tolist", self.tensor(value))
        length = value.shape[0] if value is not None and value.shape is not None and value.shape else None
        if not isinstance(length, int):
            return listed
        return [self.call(operator.getitem, listed, index) for index in range(length)]

    def known_ints(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """``value`` as integers that are known now, or None."""
        sizes = self.sizes(value)
        return None if sizes is None else sizes.known

    def size(self, value: ir.Value, axis: int) -> Item:
        """Size of ``value`` along ``axis``: a number where the model fixes it."""
        if value.shape is not None and isinstance(value.shape[axis], int):
            fixed: int = value.shape[axis]  # type: ignore[assignment]
            return fixed
        if (value, axis) not in self._sizes:
            self._sizes[value, axis] = self.method("size", self.tensor(value), axis)
            symbol = None if value.shape is None else value.shape[axis]
            if isinstance(symbol, ir.SymbolicDim) and symbol.value and symbol.value.isidentifier():
                self._sizes[value, axis]._rename(symbol.value)
        return self._sizes[value, axis]

    def rank(self, value: ir.Value | None, node: ir.Node) -> int:
        """Number of dimensions of ``value``.

        Raises:
            UnsupportedModelError: shape inference does not know it.
        """
        if value is None or value.shape is None:
            self.refuse(node, "the rank of an operand is not known")
        return len(value.shape)

    def is_never_negative(self, value: ir.Value | None) -> bool:
        """Whether ``value`` is a stored index without negative entries, which count from the end."""
        array = self.array(value)
        return array is not None and not (array < 0).any()

    def is_negative(self, value: ir.Value | None) -> bool:
        """Whether ``value`` is a stored index with negative entries."""
        array = self.array(value)
        return array is not None and bool((array < 0).any())

    def _materialised(self, sizes: Sizes) -> fx.Node:
        data = sizes.items[0] if sizes.scalar else list(sizes.items)
        return self.call(torch.tensor, data, dtype=compute_type(sizes.dtype), device=self.device)

    # ---- refusing

    def refuse(self, node: ir.Node, reason: str) -> NoReturn:
        """End with the node that cannot be written, and why.

        Raises:
            UnsupportedModelError: always.
        """
        raise UnsupportedModelError(
            f"node {node.name!r} ({operator_name(node)}) has no counterpart in torch: {reason}"
        )

    def refuse_type(self, value: ir.Value) -> NoReturn:
        """End with the value whose type PyTorch lacks.

        Raises:
            UnsupportedModelError: always.
        """
        raise UnsupportedModelError(
            f"value {value.name!r} is of type {value.type}, for which torch has no counterpart"
        )


def operator_name(node: ir.Node) -> str:
    """Name of the operator of ``node``, with its domain when that is not the standard one."""
    return f"{node.domain}.{node.op_type}" if node.domain not in ("", "ai.onnx") else node.op_type


def _last_placeholder(graph: fx.Graph) -> fx.Node:
    placeholders: Iterable[fx.Node] = (node for node in graph.nodes if node.op == "placeholder")
    return list(placeholders)[-1]
