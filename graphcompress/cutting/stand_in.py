"""A constant in place of what linears give, once nothing reaches them that would make a difference."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.experts import Experts
from graphcompress.analysis.linears import Linear
from graphcompress.graph.broadcasting import tolerates
from graphcompress.rewrite.rewriter import Rewriter


def replaceable_by_constant(readers: Sequence[Linear]) -> bool:
    """Whether a constant, which has no tokens, may stand for what each of ``readers`` gives.

    So it is where sums with a residual stream read them.
    """
    if not readers or any(isinstance(reader, Experts) for reader in readers):
        return False
    return all(tolerates(reader.output, []) for reader in readers)


def stand_in(rw: Rewriter, readers: Sequence[Linear], given: np.ndarray) -> None:
    """Let ``given`` [out] stand for the output of each of ``readers``; what only they need is left unused."""
    array = given if given.any() else np.zeros(())  # adding one zero is nothing, which simplifying sees
    dtype = readers[0].output.dtype or ir.DataType.FLOAT
    constant = rw.constant(array.astype(np.float32), f"{readers[0].name}.stand_in", dtype)
    for reader in readers:
        rw.replace(reader.output, constant)
