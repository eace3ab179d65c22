"""The oracle of cutting: a model whose units are zeroed against the one without them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.coupling.couplings import Group, couplings
from graphcompress.cutting.cut import cut
from graphcompress.graph.model import Model
from graphcompress.plugin.base import Context
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


def narrowed(model: Model, keeps: Keeps) -> Model:
    """A copy without the units that go."""
    twin = model.clone()
    groups = {group.name: group for group in couplings(twin)}
    with Rewriter(twin, Context()) as rw:
        cut(rw, {groups[name]: keep for name, keep in keeps.items()})
    return twin
