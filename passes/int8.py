"""int8: linears multiply 8-bit integers, embeddings are stored in 8 bits."""

from __future__ import annotations

import dataclasses
import fnmatch
from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Embedding, Linear, embeddings, linears
from graphcompress.base import Context, Contract, Lossy, Pass
from graphcompress.calibrate import observe
from graphcompress.data import Samples
from graphcompress.errors import UsageError
from graphcompress.model import Model
from graphcompress.numerics.metrics import sqnr_db
from graphcompress.numerics.observers import Activation, quantisation
from graphcompress.numerics.quantise import Affine, QuantisedArray, quantise_columns, quantise_rows, quantise_weight
from graphcompress.options import option
from graphcompress.qdq import QdqWriter
from graphcompress.rewrite import Rewriter

SMALLEST_SIDE = 16
SMALLEST_TABLE = 4096


@dataclass(frozen=True)
class Int8(Pass):
    """Let linears multiply 8-bit integers and store embeddings in 8 bits."""

    name: ClassVar[str] = "int8"
    contract: ClassVar[Contract] = Lossy(min_sqnr_db=10.0)

    scheme: str = option("auto", "scales of activations", choices=("auto", "static", "dynamic"))
    calibrate: str = option("minmax", "range of activations", choices=("minmax", "percentile", "mse"))
    percentile: float = option(99.99, "share covered", unit="%", minimum=50.0, maximum=100.0)
    weights: str = option("auto", "int8 values", choices=("auto", "8bit", "7bit", "pairs"))
    layers: str = option("*", "glob over names")
    embeddings: bool = option(True, "also embeddings")
    samples: int = option(300, "calibration samples at most", minimum=1)
    min_sqnr_db: float = option(0.0, "leave a linear in float below this", unit="dB")

    def run(self, model: Model, ctx: Context) -> None:
        """Quantise."""
        static = self.scheme == "static" or (self.scheme == "auto" and ctx.samples is not None)
        with Rewriter(model, ctx) as rw:
            writer = QdqWriter(rw)
            chosen = [linear for linear in linears(model, self.layers) if _fits(rw, linear)]
            seen: dict[ir.Value, Activation] = {}
            if static:
                count = -(-self.samples // ctx.samples.per_row)
                seen = {linear.input: Activation() for linear in chosen}
                observe(model, seen, ctx.samples.first(count), progress=ctx.progress)
            kind = self.weights
            if kind == "auto":
                kind = "pairs" if ctx.capabilities.int8_weight_bits == 7 else "8bit"
            for linear in chosen:
                dense = linear.dense()
                weight = quantise_weight(dense, kind)
                if not static:
                    rw.touch(linear)
                    writer.dynamic(linear, weight)
                    continue
                act = seen[linear.input]
                q = quantisation(act.histogram, self.calibrate, signed=ctx.capabilities.int8_activations == "int8", percentile=self.percentile)
                rows = act.sample.rows
                db = sqnr_db(rows @ dense, q.fake_quantise(rows) @ weight.dequantise())
                rw.touch(linear, sqnr_db=db)
                writer.static(linear, q, weight)
            for embedding in embeddings(model, self.layers) if self.embeddings else ():
                if embedding.weight.const_value is None or embedding.parameters < SMALLEST_TABLE:
                    rw.skip(embedding, "small")
                    continue
                rw.touch(embedding)
                writer.embedding_by_row(embedding, quantise_rows(embedding.dense()))


def _fits(rw: Rewriter, linear: Linear) -> bool:
    if min(linear.in_features, linear.out_features) < SMALLEST_SIDE:
        rw.skip(linear, "small")
        return False
    if linear.weight.const_value is None:
        rw.skip(linear, "expression")
        return False
    return True
