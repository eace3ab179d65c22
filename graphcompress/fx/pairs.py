"""Weights in int8 whose neighbours add up to 128 at most keep to that while they are trained."""

from __future__ import annotations

import torch
from torch import Tensor, fx

from graphcompress.analysis.low_bit import PAIR_LIMIT
from graphcompress.fx.functional import along
from graphcompress.fx.stored import Form


@torch.no_grad()
def limit_pairs(module: fx.GraphModule) -> None:
    """Move parameters whose rounded neighbours exceed their limit to the nearest values that do not."""
    forms: dict[str, Form] = module.meta["forms"]
    for path, form in forms.items():
        if form.pairs is not None:
            weight = module.get_parameter(path)
            weight.copy_(limited(weight, tensor_at(module, form.scale), form))


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


def tensor_at(module: fx.GraphModule, path: str) -> Tensor:
    """The parameter or buffer of a path."""
    folder, _, leaf = path.rpartition(".")
    found: Tensor = getattr(module.get_submodule(folder), leaf)
    return found
