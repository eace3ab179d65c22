"""The oracle of cutting: a model whose units are zeroed against the one without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.coupling.couplings import Group, WeightSlice, couplings
from graphcompress.cutting.cut import cut
from graphcompress.graph.expressions import leaves
from graphcompress.graph.model import Model
from graphcompress.plugin.context import Context
from graphcompress.rewrite.rewriter import Rewriter

TOLERANCE = 1e-5
"""Of the output's range: zeroed and cut differ by the order of additions alone."""

Keeps = Mapping[str, np.ndarray]
"""Name of a group → mask of the units that stay."""


def some_of(groups: Sequence[Group], seed: int = 0) -> dict[str, np.ndarray]:
    """A random mask for every group: at least one unit stays and at least one goes."""
    rng = np.random.default_rng(seed)
    keeps = {}
    for group in groups:
        keep = rng.random(group.size) < 0.6
        stays, goes = rng.choice(group.size, 2, replace=False)
        keep[stays], keep[goes] = True, False
        keeps[group.name] = keep
    return keeps


def zeroed(model: Model, keeps: Keeps) -> Model:
    """A copy in which every stored weight is zero at the units that go."""
    twin = model.clone()
    for group in couplings(twin):
        if group.name not in keeps:
            continue
        for part in group.slices:
            for node, index in part.uses:
                array = ir.convenience.get_const_tensor(node.inputs[index]).numpy().copy()
                gone = (part.units >= 0) & ~keeps[group.name][part.units]
                array[(slice(None),) * part.axis + (gone,)] = 0
                node.replace_input_with(index, Rewriter(twin, Context()).constant(array, "zeroed"))
    return twin


def silenced(model: Model, keeps: Keeps, side: str) -> Model:
    """A copy in which the units that go have no weights in their readers, their producers, or both of them.

    What was stored once stays stored once, so that the copy has the groups that the model has.
    """
    twin = model.clone()
    with Rewriter(twin, Context()) as rw:
        for group in couplings(twin):
            if group.name in keeps:
                for part in group.slices:
                    if side in ("both", _side(group, part)):
                        _silence(rw, part, keeps[group.name])
    return twin


SIDES = ("readers", "producers", "both")
"""Where weights of units can be zero."""


def _side(group: Group, part: WeightSlice) -> str:
    return (
        "readers"
        if part.value in {one for each in group.consumers for one in leaves(each.weight)}
        else "producers"
    )


def _silence(rw: Rewriter, part: WeightSlice, keep: np.ndarray) -> None:
    array = ir.convenience.get_const_tensor(part.value).numpy().copy()
    array[(slice(None),) * part.axis + ((part.units >= 0) & ~keep[part.units],)] = 0
    if part.value.is_initializer() and len(part.value.uses()) == len(part.uses):
        rw.overwrite(part.value, array)
        return
    own = rw.constant(array, "silenced", part.value.dtype)
    for node, index in part.uses:
        rw.set_input(node, index, own)


def narrowed(model: Model, keeps: Keeps) -> Model:
    """A copy without the units that go."""
    twin = model.clone()
    groups = {group.name: group for group in couplings(twin)}
    with Rewriter(twin, Context()) as rw:
        cut(rw, {groups[name]: keep for name, keep in keeps.items()})
    return twin
