"""Couplings: dimensions that must be cut together."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Linear
from graphcompress.model import Model

FFN, HEAD, HIDDEN, OTHER = "ffn", "head", "hidden", "other"


@dataclass(frozen=True, eq=False)
class WeightSlice:
    """One axis of a stored tensor that a group cuts.

    Attributes:
        value: the stored tensor.
        axis: non-negative.
        units: for every index of the axis the unit it belongs to, or -1 when the group does not own this index.
    """

    value: ir.Value
    axis: int
    units: np.ndarray


@dataclass(frozen=True, eq=False)
class Group:
    """Dimensions that must be cut together.

    Attributes:
        name: stable and legible: that of the linear that produces it.
        kind: ``ffn``, ``head``, ``hidden`` or ``other``. A unit of a head group is a key/value head with the query
            heads that read it.
        size: number of units that can be removed one by one.
        exact: removing a unit equals zeroing its weights (false where a normalisation averages over the units).
        slices: every stored axis that it cuts: weights, biases, scales, factors, normalisation parameters.
        producers: linears whose output columns are cut.
        consumers: linears whose input rows are cut.
    """

    name: str
    kind: str
    size: int
    exact: bool
    slices: tuple[WeightSlice, ...]
    producers: tuple[Linear, ...]
    consumers: tuple[Linear, ...]


def couplings(model: Model) -> list[Group]:
    """Groups of the main graph that can be cut physically, in execution order of their first producer."""
    raise NotImplementedError
