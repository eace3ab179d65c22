"""Gradient checkpointing: activations are computed again instead of kept."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import fx, nn
from torch.fx.passes.split_module import split_module
from torch.utils.checkpoint import checkpoint

from graphcompress.errors import UsageError


def checkpointed(module: fx.GraphModule, at: Iterable[str]) -> fx.GraphModule:
    """The computation of ``module`` in parts that end at the values ``at``, each under a checkpoint.

    For the gradient only what crosses from part to part is kept; the inside of a part is computed a second
    time on the way back (Chen et al. 2016, arXiv:1604.06174). The parameters are those of ``module`` itself,
    whose names, ``state_dict`` and write-back stay the ones to use.

    Args:
        module: from :func:`graphcompress.fx.to_fx`.
        at: names of outputs and taps of ``module``, such as the output of every layer.

    Raises:
        UsageError: a name that is neither an output nor a tap.
    """
    outputs: dict[str, Any] = module.graph.output_node().args[0]  # type: ignore[assignment]
    unknown = sorted(set(at) - set(outputs))
    if unknown:
        raise UsageError(f"the module does not return {unknown}; give taps=… to to_fx")
    ends = {outputs[name] for name in at}
    part_of: dict[fx.Node, int] = {}
    part = 0
    for node in module.graph.nodes:
        part_of[node] = part
        part += node in ends
    divided: fx.GraphModule = split_module(module, module, part_of.__getitem__, keep_original_order=True)
    for node in divided.graph.find_nodes(op="call_module"):
        setattr(divided, str(node.target), _Recomputed(divided.get_submodule(str(node.target))))
    divided.meta.update(module.meta)
    return divided


class _Recomputed(nn.Module):
    """A part whose inside is not kept."""

    def __init__(self, part: nn.Module) -> None:
        super().__init__()
        self.part = part

    def forward(self, *values: object) -> object:
        """What the part gives; nothing in it is random, so no state of a generator is kept."""
        # The reentrant form gives no gradient to a part whose inputs need none, as the one that reads token
        # ids.
        return checkpoint(self.part, *values, use_reentrant=False, preserve_rng_state=False)
