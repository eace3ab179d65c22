"""What a caller gives a model, its inputs, their sizes and where the batch lies, and what comes back."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from graphcompress.files.declared import Dim
from graphcompress.graph.match import operand, producer
from graphcompress.graph.model import Model

_SAME_NUMBERS = frozenset({"Cast", "Identity", "Reshape", "Unsqueeze", "Squeeze"})

_BATCH_NAMES = frozenset({"batch", "batch_size", "bs", "n"})


def inputs_of(model: Model) -> dict[str, ir.Value]:
    """Inputs that a caller must give, by name; one that has an initializer need not be given."""
    return {
        value.name or "": value for value in model.graph.inputs if value.name not in model.graph.initializers
    }


def output_ranks(model: Model) -> dict[str, int]:
    """Floating-point output → the number of its axes, of those where it is known."""
    floats = [value for value in model.graph.outputs if value.dtype and value.dtype.is_floating_point()]
    return {value.name or "": len(value.shape) for value in floats if value.shape is not None}


def batch_axis(value: ir.Value) -> int:
    """The first axis, or the one that is named batch where the first has another name: time-major inputs."""
    names = [
        str(dim).lower() if isinstance(dim, ir.SymbolicDim) and dim.value else "" for dim in _dims(value)
    ]
    named = [axis for axis, name in enumerate(names) if name in _BATCH_NAMES]
    return named[0] if named and names[0] else 0


def batch_axes(inputs: Mapping[str, ir.Value]) -> dict[str, int]:
    """Input name → :func:`batch_axis`, of those where it is not the first."""
    return {name: axis for name, value in inputs.items() if (axis := batch_axis(value))}


def batch_first(value: ir.Value) -> list[Dim]:
    """Sizes of an input, the batch in front; none where its shape is unknown or it has no axes."""
    dims, axis = _dims(value), batch_axis(value)
    return [dims[axis], *dims[:axis], *dims[axis + 1 :]] if dims else []


def fixed_sizes(inputs: Mapping[str, ir.Value]) -> dict[str, tuple[int | None, ...]]:
    """Input name → its sizes, the batch in front, None where one is not fixed.

    Of inputs that fix any, and of those without axes.
    """
    sizes = {
        name: tuple(dim if isinstance(dim, int) else None for dim in batch_first(value))
        for name, value in inputs.items()
        if value.shape is not None
    }
    return {name: shape for name, shape in sizes.items() if any(shape) or not shape}


def shapes_in(feed: Mapping[str, np.ndarray], model: Model) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Type and shape of each input of ``model`` in ``feed``; where the model fixes a size, that one."""
    found = {}
    for name, value in inputs_of(model).items():
        seen = feed[name].shape
        fixed = seen if value.shape is None else value.shape
        sizes = [size if isinstance(size, int) else given for size, given in zip(fixed, seen, strict=True)]
        # Caches that are kept in 8 bits are floats in a feed, which serves other models, too.
        dtype = feed[name].dtype if value.dtype is None else value.dtype.numpy()
        found[name] = str(dtype), tuple(sizes)
    return found


def source_of(value: ir.Value) -> ir.Value:
    """The value before casts and reshapes, which change no number."""
    while before := operand(producer(value, *_SAME_NUMBERS), 0):
        value = before
    return value


def _dims(value: ir.Value) -> list[Dim]:
    return list(value.shape or ())
