"""Initializers as parameters and buffers of a module."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
import torch
from torch import Tensor, fx, nn

from graphcompress.analysis.low_bit import PAIR_LIMIT, LowBit, low_bit
from graphcompress.fx.functional import along, dequantise, quantise, round_to
from graphcompress.fx.names import module_paths
from graphcompress.fx.roles import is_frozen
from graphcompress.fx.sizes import LARGEST
from graphcompress.fx.types import compute_type, is_half, stored_type

if TYPE_CHECKING:
    from graphcompress.fx.builder import FxBuilder


@dataclass(frozen=True)
class Form:
    """How a parameter is stored in the ONNX graph.

    Attributes:
        initializer: its name.
        kind: ``float`` (as it is), ``half`` (rounded to the stored type), ``integer`` (quantised).
        scale, zero_point: paths of the scale and the zero point in the module, when ``integer``.
        axis, lower, upper, pairs: as in :class:`graphcompress.analysis.low_bit.LowBit`.
    """

    initializer: str
    kind: str = "float"
    scale: str = ""
    zero_point: str = ""
    axis: int | None = None
    lower: int = 0
    upper: int = 0
    pairs: int | None = None


class Stored:
    """The module that holds what a graph stores; filled as the graph asks for it.

    Attributes:
        root: the module.
        forms: path of a parameter → how it is stored.
        learned_scales: paths of the parameters that are scales of a quantisation.
    """

    def __init__(self, initializers: Iterable[ir.Value], *, learn_scales: bool) -> None:
        known = {value.name or "": value for value in initializers}
        self.root = nn.Module()
        self.forms: dict[str, Form] = {}
        self.learned_scales: set[str] = set()
        self._paths = module_paths(known)
        self._learn_scales = learn_scales
        self._trained: dict[ir.Value, bool] = {}
        self._low_bit = {value: form for value in known.values() if (form := low_bit(value)) is not None}
        self._scales = {form.scale for form in self._low_bit.values()} | {
            value for value in known.values() if _scales_activations(value)
        }

    # ---- questions

    def array(self, value: ir.Value) -> np.ndarray | None:
        """The numbers of a stored value, or None: it is computed."""
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()

    def number(self, value: ir.Value) -> float | None:
        """The number of a stored tensor of rank 0 that is not trained, or None."""
        tensor = ir.convenience.get_const_tensor(value)
        # A number in the code cannot be trained.
        if tensor is None or len(tensor.shape) or value in self._low_bit or self.is_trained(value):
            return None
        number: float = tensor.numpy().item()
        return number

    def shape(self, node: object) -> torch.Size:
        """Shape of the parameter or buffer that ``node`` fetches."""
        found = self.root
        for part in str(node.target if isinstance(node, fx.Node) else node).split("."):
            found = getattr(found, part)
        return found.shape if isinstance(found, torch.Tensor) else torch.Size(())

    def small_integers(self, value: ir.Value) -> np.ndarray | None:
        """The numbers of a small stored table of integers, or None."""
        tensor = ir.convenience.get_const_tensor(value)
        if tensor is None or tensor.size > LARGEST or tensor.dtype not in _NUMBERS:
            return None
        return tensor.numpy()

    def is_trained(self, value: ir.Value) -> bool:
        """Whether ``value`` becomes a parameter."""
        if value in self._scales:
            return self._learn_scales
        if value not in self._trained:  # all readers of a value are looked at, so do it once
            floats = value.dtype is not None and value.dtype.is_floating_point()
            self._trained[value] = value in self._low_bit or (floats and not is_frozen(value))
        return self._trained[value]

    # ---- nodes

    def node(self, builder: FxBuilder, value: ir.Value) -> fx.Node:
        """A node that gives the stored ``value``: as it is, rounded to half precision, or quantised."""
        if self.array(value) is None or compute_type(value.dtype) is None:
            builder.refuse_type(value)
        form = self._low_bit.get(value)
        if form is not None:
            return self._integers(builder, value, form)
        path = self._hold(value)
        node = builder.graph.get_attr(path)
        if value not in self._scales and self.is_trained(value) and is_half(value.dtype):
            return builder.call(round_to, node, stored_type(value.dtype))
        return node

    def _integers(self, builder: FxBuilder, value: ir.Value, form: LowBit) -> fx.Node:
        builder.quantised.add(value)
        zero_point = 0 if form.zero_point is None else builder.tensor(form.zero_point)
        arguments = (builder.tensor(form.scale), zero_point, form.lower, form.upper)
        node = builder.graph.get_attr(self._hold(value))
        channel = () if form.axis is None else (form.axis,)
        return builder.call(quantise, node, *arguments, *channel)

    def _hold(self, value: ir.Value) -> str:
        """Register what ``value`` stores under its path."""
        name = value.name or ""
        # A constant of a node is no initializer, so its path is made when it is first met.
        path = self._paths.setdefault(name, module_paths([name])[name])
        folder, _, leaf = path.rpartition(".")
        module = _submodule(self.root, folder)
        if hasattr(module, leaf):
            return path
        tensor = self._tensor(value)
        if not self.is_trained(value):
            module.register_buffer(leaf, tensor)
            return path
        module.register_parameter(leaf, nn.Parameter(tensor))
        self.forms[path] = self._form(value)
        if value in self._scales:
            self.learned_scales.add(path)
        return path

    def _tensor(self, value: ir.Value) -> torch.Tensor:
        array = _plain(self.array(value))
        form = self._low_bit.get(value)
        if form is None:
            # Without the copy training would write into the array of the model.
            return torch.from_numpy(array).to(compute_type(value.dtype), copy=True)
        numbers = torch.from_numpy(array.astype(np.float32))
        scale = self._as_tensor(form.scale)
        zero_point = 0 if form.zero_point is None else self._as_tensor(form.zero_point)
        return dequantise(numbers, scale, zero_point, form.axis)

    def _as_tensor(self, value: ir.Value) -> torch.Tensor:
        return torch.from_numpy(_plain(self.array(value))).float()

    def _form(self, value: ir.Value) -> Form:
        name = value.name or ""
        low = self._low_bit.get(value)
        if low is None:
            return Form(name, "half" if is_half(value.dtype) else "float")
        zero_point = "" if low.zero_point is None else self._hold(low.zero_point)
        numbers = (low.axis, low.lower, low.upper, low.pairs)
        return Form(name, "integer", self._hold(low.scale), zero_point, *numbers)


_NUMBERS = frozenset({ir.DataType.INT64, ir.DataType.INT32, ir.DataType.BOOL})


def _plain(array: np.ndarray | None) -> np.ndarray:
    """An array of a type that PyTorch reads."""
    if array is None:
        raise ValueError("a stored value has no numbers")
    kind = array.dtype
    # NumPy's bfloat16 and 4-bit types are those of ml_dtypes, which torch.from_numpy does not read.
    if kind.name in ("bfloat16", "float16"):
        return array.astype(np.float32)
    if kind.name in ("int4", "uint4"):
        return array.astype(np.int8 if kind.name == "int4" else np.uint8)
    # PyTorch computes hardly anything in unsigned types wider than a byte.
    wider = {np.dtype(np.uint16): np.int32, np.dtype(np.uint32): np.int64}.get(kind)
    return np.array(array, wider) if wider is not None else np.array(array)


def _scales_activations(value: ir.Value) -> bool:
    """Whether a stored tensor is the scale of a QuantizeLinear or DequantizeLinear."""
    return any(
        node.op_type in ("QuantizeLinear", "DequantizeLinear") and index == 1 for node, index in value.uses()
    )


def _submodule(root: nn.Module, path: str) -> nn.Module:
    module = root
    for part in filter(None, path.split(".")):
        if not hasattr(module, part):
            module.add_module(part, nn.Module())
        module = getattr(module, part)
    return module


@torch.no_grad()
def limited(weight: Tensor, scale: Tensor, form: Form) -> Tensor:
    """``weight``; two neighbours of one sign that exceed the limit, in steps of ``scale``, lowered alike.

    Before rounding such a pair has one step less than the limit: rounding adds one at most.
    """
    if form.pairs is None:
        return weight
    step = along(scale, weight.dim(), form.axis, weight.shape[1 - form.pairs])
    steps = (weight / step).movedim(form.pairs, 0)
    rows = steps.shape[0] // 2 * 2
    pairs = steps[:rows].reshape(rows // 2, 2, -1)
    found = pairs
    for sign in (1, -1):
        parts = (sign * pairs).clamp(min=0, max=form.upper)
        over = parts.round().sum(1, keepdim=True) > PAIR_LIMIT
        if bool(over.any()):
            lower = parts - (parts.sum(1, keepdim=True) - (PAIR_LIMIT - 1)) / 2
            found = torch.where(over, sign * lower, found)
    if found is pairs:
        return weight
    changed = torch.cat([found.reshape(rows, -1), steps[rows:]]).movedim(0, form.pairs)
    return torch.where(changed == steps.movedim(0, form.pairs), weight, changed * step)
