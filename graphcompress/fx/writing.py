"""Trained values go back into the ONNX graph that they came from."""

from __future__ import annotations

from operator import attrgetter

import numpy as np
import onnx_ir as ir
import torch
from torch import fx

from graphcompress.errors import UsageError
from graphcompress.fx.functional import fake_quantise, quantise
from graphcompress.fx.stored import Form, limited
from graphcompress.graph.model import Model
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter


def write_back(module: fx.GraphModule, model: Model) -> set[str]:
    """Put the parameters of ``module``, made by :func:`graphcompress.fx.to_fx`, into ``model``.

    Integer weights are quantised again with their scale (neighbours that must not add up to more than 128
    still do not), half precision is rounded again. What did not change is not touched: without training, the
    saved file is the same byte by byte.

    Returns:
        Names of the initializers that changed.

    Raises:
        UsageError: ``model`` is not the one that ``module`` was made from: an initializer is missing or has
            another shape.
    """
    forms: dict[str, Form] = module.meta["forms"]
    rw = Rewriter(model, Context())
    arrays = []
    for path, form in forms.items():
        value = model.graph.initializers.get(form.initializer)
        array = _stored(module, path, form)
        stored = None if value is None else value.const_value
        if value is None or stored is None or tuple(stored.shape.numpy()) != array.shape:
            raise UsageError(
                f"the module's parameter {path!r} does not fit the model: its initializer "
                f"{form.initializer!r} is missing or not {list(array.shape)}; write back into the model that "
                "to_fx was called with"
            )
        arrays.append((value, array))
    return {value.name or "" for value, array in arrays if _overwrite(rw, value, array)}


def _overwrite(rw: Rewriter, value: ir.Value, array: np.ndarray) -> bool:
    """Store ``array``; whether that changed anything."""
    if value.const_value is None or value.dtype is None:
        return False
    new = array.astype(value.dtype.numpy())
    if new.tobytes() == value.const_value.numpy().tobytes():
        return False
    rw.overwrite(value, new)
    return True


def _stored(module: fx.GraphModule, path: str, form: Form) -> np.ndarray:
    """The numbers of a parameter, as the ONNX graph stores them."""
    tensor = module.get_parameter(path).detach().cpu()
    if form.kind != "integer":
        return tensor.numpy()
    scale = attrgetter(form.scale)(module).detach().cpu()
    tensor = limited(tensor, scale, form)
    zero_point = attrgetter(form.zero_point)(module).detach().cpu() if form.zero_point else 0
    grid = (scale, zero_point, form.lower, form.upper, form.axis)
    with torch.no_grad():
        return quantise(fake_quantise(tensor, *grid), *grid).numpy()  # as the forward rounds, at ties too
