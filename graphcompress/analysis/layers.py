"""Layers: the transformer blocks along the residual stream."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from graphcompress.analysis.attention import Attention
from graphcompress.analysis.couplings import Group
from graphcompress.model import Model


@dataclass(frozen=True, eq=False)
class Layer:
    """A transformer block: removing it means that ``entry`` takes the place of ``exit``.

    Attributes:
        name: longest common prefix of its linears' names, or ``layer.<n>``.
        entry: residual value that goes in.
        exit: residual value that comes out, same shape as ``entry``.
        attentions: attentions inside.
        groups: ffn and head groups inside.
    """

    name: str
    entry: ir.Value
    exit: ir.Value
    attentions: tuple[Attention, ...]
    groups: tuple[Group, ...]


def layers(model: Model, groups: Sequence[Group] | None = None) -> list[Layer]:
    """Transformer blocks in execution order; ``groups`` are those of :func:`couplings`, if at hand."""
    raise NotImplementedError
