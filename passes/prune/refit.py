"""Writes refitted weights and biases into a model."""

from __future__ import annotations

from collections.abc import Sequence

from graphcompress.analysis.linears import Linear
from graphcompress.numerics.least_squares import LinearMap
from graphcompress.rewrite.bias import write_bias
from graphcompress.rewrite.rewriter import Rewriter


def write_fit(rw: Rewriter, readers: Sequence[Linear], fit: LinearMap) -> None:
    """Store another weight [in, out] and bias for linears that share both; the weight is an initializer."""
    first = readers[0]
    rw.overwrite(first.weight, fit.weight.T if first.transposed else fit.weight)
    write_bias(rw, readers, fit.bias)
