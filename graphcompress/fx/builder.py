"""Writes a torch.fx graph operator by operator; asks for an ONNX value as tensor, as numbers or as array."""

from __future__ import annotations

import operator
from collections.abc import Callable, Sequence
from typing import Any, NoReturn

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from graphcompress.errors import UnsupportedModelError
from graphcompress.fx.names import identifier
from graphcompress.fx.sizes import FUNCTIONS, Item, Sizes, elementwise, sizes_of_array
from graphcompress.fx.stored import Stored
from graphcompress.fx.types import compute_type, stored_type
from graphcompress.graph.match import fixed_size

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

    def shared(self, function: Callable[..., Any] | str, *args: Argument) -> fx.Node:
        """As :meth:`call`, or :meth:`method` of a name; the same arguments give the same node again."""
        key = (function, *args)
        if key not in self._shared:
            made = self.method(function, *args) if isinstance(function, str) else self.call(function, *args)
            self._shared[key] = made
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
        # A node that stands for several values keeps the name of the first.
        if isinstance(operand, fx.Node) and operand.op.startswith("call") and "value" not in operand.meta:
            operand.meta["value"] = value.name
            operand._rename(identifier(value.name or operand.name))

    @property
    def device(self) -> fx.Node:
        """The device of the inputs."""
        if self._device is None:
            placeholders = list(self.graph.find_nodes(op="placeholder"))
            # A torch.fx graph runs in its own order: what all may read comes right behind the arguments.
            with self.graph.inserting_after(placeholders[-1]):
                self._device = self.call(getattr, placeholders[0], "device")
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

    def operand(self, value: ir.Value | None) -> fx.Node | float:
        """``value`` as a tensor; as a plain number, when it is one that is known or the size of a tensor."""
        number = None if value is None else self.stored.number(value)
        if number is not None:
            return number
        sizes = self.sizes(value)
        # A plain number multiplies a tensor on any device; a tensor would first have to be made there.
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

    def numbers(self, node: ir.Node) -> Sizes | None:
        """The result of ``node`` as Python numbers, when it is arithmetic and all its operands are such."""
        known = [sizes for value in node.inputs if (sizes := self.sizes(value)) is not None]
        dtype, truncates = node.outputs[0].dtype, node.attributes.get_int("fmod", 0)
        if node.op_type not in FUNCTIONS or len(known) < len(node.inputs) or dtype is None or truncates:
            return None
        return elementwise(self.graph, node.op_type, known, dtype)

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
        # torch.fx does not know the length of a list; where the graph fixes it, items are read one by one.
        return [self.call(operator.getitem, listed, index) for index in range(length)]

    def known_ints(self, value: ir.Value | None) -> tuple[int, ...] | None:
        """``value`` as integers that are known now, or None."""
        sizes = self.sizes(value)
        return None if sizes is None else sizes.known

    def size(self, value: ir.Value, axis: int) -> Item:
        """Size of ``value`` along ``axis``: a number where the model fixes it."""
        fixed = fixed_size(value, axis)
        if fixed is not None:
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

    def has_negatives(self, value: ir.Value | None) -> bool | None:
        """Whether a stored index has negative entries, which count from the end; None: it is computed."""
        array = self.array(value)
        return None if array is None else bool((array < 0).any())

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
