"""Values inside a graph as further outputs, for losses on hidden states."""

from __future__ import annotations

from collections.abc import Sequence

import onnx_ir as ir
from torch import fx

from graphcompress.errors import UsageError, nearest
from graphcompress.graph.model import Model


def taps(module: fx.GraphModule, names: Sequence[str]) -> fx.GraphModule:
    """Let ``module``, made by :func:`graphcompress.fx.to_fx`, also return the values ``names``; returns it.

    The names are those of the ONNX graph. The same module is edited: its parameters stay the same objects.

    Raises:
        UsageError: a value that is not in the graph, or is hidden inside one call, such as the scores of an
            attention: name it in ``to_fx(model, taps=…)`` instead.
    """
    found = {node.meta["value"]: node for node in module.graph.nodes if "value" in node.meta}
    for name in names:
        if name not in found:
            raise UsageError(
                f"{name!r} is no value of the module, {nearest(name, found)}; a value inside a call, such as "
                "the scores of an attention, is named in to_fx(model, taps=[…])"
            )
    output = next(node for node in module.graph.nodes if node.op == "output")
    results = dict(output.args[0])
    output.args = ({**results, **{name: found[name] for name in names}},)
    module.recompile()
    return module


def find_values(model: Model, names: Sequence[str]) -> list[ir.Value]:
    """Values of the main graph by name.

    Raises:
        UsageError: there is none of that name.
    """
    known = {value.name: value for node in model.graph for value in node.outputs}
    for name in names:
        if name not in known:
            raise UsageError(f"{name!r} is no value of the graph; {nearest(name, filter(None, known))}")
    return [known[name] for name in names]
