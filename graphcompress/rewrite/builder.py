"""New operators and constants in front of a node, each with a name and with the type that is read there."""

from __future__ import annotations

import functools
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx
import onnx_ir as ir

from graphcompress.graph.match import dtype_of

if TYPE_CHECKING:
    from graphcompress.rewrite.rewriter import Rewriter

AttributeValue = int | float | str | list[int] | list[float]
Numbers = int | float | Sequence[int] | Sequence[float] | np.ndarray
Operand = ir.Value | Numbers | None
"""What a new node reads: a value, numbers that become a constant, or nothing in this place."""


class Builder:
    """Makes operators and constants in front of one node; made by :meth:`Rewriter.at`.

    Attributes:
        name: what the names of all that it makes begin with.
    """

    def __init__(self, rw: Rewriter, before: ir.Node | None, name: str) -> None:
        self.rw = rw
        self.name = name
        self._before = before

    def named(self, name: str) -> Builder:
        """Another one at the same place, for names that begin with ``name``."""
        return Builder(self.rw, self._before, name)

    def op(
        self,
        op_type: str,
        *operands: Operand,
        name: str | None = None,
        domain: str = "",
        outputs: int = 1,
        **attributes: AttributeValue,
    ) -> ir.Value:
        """The first output of :meth:`node`."""
        return self.node(op_type, *operands, name=name, domain=domain, outputs=outputs, **attributes).outputs[
            0
        ]

    def node(
        self,
        op_type: str,
        *operands: Operand,
        name: str | None = None,
        domain: str = "",
        outputs: int = 1,
        **attributes: AttributeValue,
    ) -> ir.Node:
        """A new node of a standard operator, or of one of ``domain``.

        ``name``, behind the name of the builder, is that of the first output; without it, the operator is.
        Numbers among the operands become constants of the type of elements that is read there, named by what
        the standard calls that operand. The outputs get their type, too, for the constants of what follows.
        """
        name = self._named(op_type.lower() if name is None else name)
        definition = _definition(op_type, domain)
        types = definition.types(operands, attributes)
        inputs = []
        for value, (operand, letter) in zip(operands, definition.inputs(len(operands)), strict=True):
            if not (value is None or isinstance(value, ir.Value)):
                value = self._stored(value, self._named(operand), types.get(letter))
            inputs.append(value)
        made = ir.node(op_type, inputs, attributes, domain=domain, num_outputs=outputs)
        for value, letter in zip(made.outputs, definition.results, strict=False):
            if letter in types:
                value.dtype = types[letter]
        self.rw.insert(made, name, self._before)
        return made

    def constant(self, numbers: Numbers, name: str, like: ir.Value | None = None) -> ir.Value:
        """A new constant of the type of elements of ``like``.

        Without ``like``, integers are int64, other numbers float32, and an array is what it is.
        """
        return self._stored(numbers, self._named(name), None if like is None else dtype_of(like))

    def _stored(self, numbers: Numbers, name: str, dtype: ir.DataType | None) -> ir.Value:
        array = np.asarray(numbers)
        if dtype is not None:
            array = array.astype(dtype.numpy())
        elif not isinstance(numbers, np.ndarray):
            # An empty list is float64 to NumPy, but stands for sizes or axes here.
            array = array.astype(_TYPES[array.dtype.kind] if array.size else np.int64)
        return self.rw.constant(array, name, dtype)

    def _named(self, name: str) -> str:
        return ".".join(filter(None, (self.name, name)))


_TYPES = {"b": np.bool_, "f": np.float32, "i": np.int64}
"""Kind of numbers in NumPy's letters → the type of a constant of which nothing else is known."""


@dataclass(frozen=True)
class _Definition:
    """What the standard says of an operator; a letter stands for the same type wherever it occurs.

    Attributes:
        operands: name and letter of each; the last is that of all further ones.
        results: letter of each.
        fixed: letter → the only type that it may be.
    """

    operands: tuple[tuple[str, str], ...]
    results: tuple[str, ...]
    fixed: Mapping[str, ir.DataType]

    def inputs(self, count: int) -> list[tuple[str, str]]:
        """Name and letter of each of ``count`` operands."""
        return [self.operands[min(index, len(self.operands) - 1)] for index in range(count)]

    def types(
        self, given: Sequence[Operand], attributes: Mapping[str, AttributeValue]
    ) -> dict[str, ir.DataType]:
        """Letter → type of elements, as far as the operands tell."""
        types = dict(self.fixed)
        for value, (_, letter) in zip(given, self.inputs(len(given)), strict=True):
            if isinstance(value, ir.Value) and value.dtype is not None:
                # The first operand of a letter decides; the standard wants all of them to be alike.
                types.setdefault(letter, value.dtype)
        if isinstance(to := attributes.get("to"), int):  # Cast
            types[self.results[0]] = ir.DataType(to)
        return types


@functools.cache
def _definition(op_type: str, domain: str) -> _Definition:
    """The definition of an operator; one that the standard has not tells nothing."""
    if not onnx.defs.has(op_type, domain):
        return _Definition((("operand", ""),), (), {})
    schema = onnx.defs.get_schema(op_type, domain)
    allowed = {item.type_param_str: list(item.allowed_type_strs) for item in schema.type_constraints}
    kinds = [item.type_str for item in (*schema.inputs, *schema.outputs)]
    named = {kind: _element(*allowed.get(kind, [kind])) for kind in kinds}
    return _Definition(
        tuple((item.name, item.type_str) for item in schema.inputs),
        tuple(item.type_str for item in schema.outputs),
        {kind: dtype for kind, dtype in named.items() if dtype is not None},
    )


def _element(*types: str) -> ir.DataType | None:
    """The type of elements of ``tensor(float)``, when it is the only one of ``types``."""
    found = re.fullmatch(r"tensor\((\w+)\)", types[0]) if len(types) == 1 else None
    return None if found is None else ir.DataType[found[1].upper()]
