"""Variable sizes become numbers, and the arithmetic on shapes goes."""

from __future__ import annotations

import re
from collections.abc import Mapping

import onnx_ir as ir

from graphcompress.errors import UsageError, nearest
from graphcompress.graph.model import Model
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter
from graphcompress.rules.everything import simplify

_SHAPE = re.compile(r"([1-9]\d*)(?:x([1-9]\d*))?")
_NAMED = re.compile(r"([A-Za-z_][\w.]*)=([1-9]\d*)")


def parse_shape(text: str, option: str = "shape") -> tuple[int, int | None] | dict[str, int]:
    """Read ``1x128`` as (batch, length), ``1`` as (batch, None), ``batch=1,height=224`` by the sizes' names.

    ``option`` is what the user gave it as.

    Raises:
        UsageError: another form.
    """
    match = _SHAPE.fullmatch(text)
    if match:
        return int(match[1]), int(match[2]) if match[2] else None
    named = [_NAMED.fullmatch(part.strip()) for part in text.split(",")]
    if not all(named):
        raise UsageError(
            f"{option}={text!r}: expected batch x length such as 1x128, a batch such as 1, or names such as "
            '"batch=1,sequence=128"'
        )
    return {part[1]: int(part[2]) for part in named if part}


def sizes_of(model: Model, shape: str, option: str = "shape") -> dict[str, int]:
    """The number that ``shape``, given as ``option``, gives to every variable size of the inputs.

    The batch is the first size of the inputs, the length the one other that is variable.

    Raises:
        UsageError: a size that the model does not have, or one that is left without a number.
    """
    wanted = parse_shape(shape, option)
    first, others = variable_sizes(model)
    known = list(dict.fromkeys([*first, *others]))
    if isinstance(wanted, dict):
        for name in wanted:
            if name not in known:
                raise UsageError(f"{option}={shape!r}: no input has a size {name!r}: {nearest(name, known)}")
        return wanted if not known else complete_sizes(wanted, known, shape, option)
    batch, length = wanted
    sizes = dict.fromkeys(first, batch)
    rest = [name for name in others if name not in sizes]
    if length is None:
        return complete_sizes(sizes, known, shape, option)
    if len(rest) != 1:
        have = f"the variable sizes are {', '.join(known)}" if known else "all its sizes are fixed already"
        raise UsageError(
            f"{option}={shape!r}: besides the batch, one variable size of the inputs is a length, "
            f'but {have}; give a batch alone, or names: {option}="{",".join(f"{name}=1" for name in known)}"'
        )
    return {**sizes, rest[0]: length}


def fix_shapes(model: Model, sizes: Mapping[str, int], ctx: Context) -> int:
    """Give the variable sizes these numbers and simplify; returns how many nodes that made superfluous."""
    before = len(model.graph)
    model.fix_sizes(sizes)
    with Rewriter(model, ctx) as rw:
        simplify(rw)
    return before - len(model.graph)


def is_fixed(model: Model) -> bool:
    """Whether no size of the inputs is variable."""
    return not any(variable_sizes(model))


def complete_sizes(sizes: dict[str, int], known: list[str], shape: str, option: str) -> dict[str, int]:
    """``sizes``, which ``shape``, given as ``option``, gives to all that are ``known``.

    Raises:
        UsageError: one of them is left without a number.
    """
    missing = [name for name in known if name not in sizes]
    if missing:
        raise UsageError(
            f"{option}={shape!r}: {', '.join(missing)} would stay variable; fix all sizes of the inputs, by "
            f'name: {option}="{",".join(f"{name}={sizes.get(name, 1)}" for name in known)}"'
        )
    return sizes


def variable_sizes(model: Model) -> tuple[list[str], list[str]]:
    """Names of the variable sizes of the inputs: those of first axes, and all others.

    The one axis of a list, such as positions, is a length where the length of another input has its name.
    """
    first: list[str] = []
    lists: list[str] = []
    others: list[str] = []
    for value in model.graph.inputs:
        for axis, dim in enumerate(value.shape or ()):
            if isinstance(dim, ir.SymbolicDim):
                (others if axis else lists if len(value.shape or ()) == 1 else first).append(str(dim.value))
    first += [name for name in lists if name not in others]
    return list(dict.fromkeys(first)), [name for name in dict.fromkeys(others) if name not in first]
