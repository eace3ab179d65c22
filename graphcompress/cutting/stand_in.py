"""A constant in place of what linears give, once nothing reaches them that would make a difference."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.experts import Experts
from graphcompress.analysis.linears import Linear
from graphcompress.coupling.couplings import Group
from graphcompress.cutting.silence import carries
from graphcompress.graph.broadcasting import tolerates
from graphcompress.rewrite.rewriter import Rewriter


def may_be_empty(groups: Iterable[Group]) -> set[Group]:
    """Those of which no unit has to stay, also when all of them go: a constant may stand for what reads them.

    A constant has no tokens, so that it may where sums with a residual stream read it. Of two whose results
    are added to each other first, the first. Where a cache holds what units give, one stays for it.
    """
    found: set[Group] = set()
    constants: dict[ir.Value, Sequence[int]] = {}
    for group in groups:
        more = constants | {reader.output: () for reader in group.consumers}
        experts = any(isinstance(reader, Experts) for reader in group.consumers)
        held = any(carries(group, output) for output in group.relations.model.graph.outputs)
        if group.consumers and not experts and not held and tolerates(more):
            found.add(group)
            constants = more
    return found


def stand_in(rw: Rewriter, readers: Sequence[Linear], given: np.ndarray) -> None:
    """Let ``given`` [out] stand for the output of each of ``readers``; what only they need is left unused."""
    array = given if given.any() else np.zeros(())  # adding one zero is nothing, which simplifying sees
    dtype = readers[0].output.dtype or ir.DataType.FLOAT
    constant = rw.constant(array.astype(dtype.numpy()), f"{readers[0].name}.stand_in", dtype)
    for reader in readers:
        rw.replace(reader.output, constant)
