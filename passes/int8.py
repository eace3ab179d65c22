"""int8: linears multiply 8-bit integers, embeddings are stored in 8 bits."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar, cast

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Embedding, Linear, embeddings, linears
from graphcompress.base import Context, Contract, Lossy, Pass
from graphcompress.calibrate import observe
from graphcompress.data.load import Samples
from graphcompress.errors import UsageError
from graphcompress.expressions import is_constant
from graphcompress.model import Model
from graphcompress.numerics.metrics import sqnr_db
from graphcompress.numerics.observers import Activation, Calibration, quantisation
from graphcompress.numerics.quantise import Affine, WeightRange, affine, quantise_weight
from graphcompress.numerics.smooth import smoothing
from graphcompress.options import option
from graphcompress.quantisation.equalise import Equalisable, divide, equalisable
from graphcompress.quantisation.lowbit import (
    LowBitWeight,
    low_bit_leaves,
    low_bit_linear,
    low_bit_table,
    stays_expression,
)
from graphcompress.quantisation.qdq import QdqWriter
from graphcompress.quantisation.quantisable import linear_reason, table_reason, tied_table
from graphcompress.rewrite import Rewriter

_METHODS: tuple[Calibration, ...] = ("minmax", "percentile", "mse")


@dataclass(frozen=True)
class Int8(Pass):
    """Let linears multiply 8-bit integers and store embeddings in 8 bits.

    Weights are symmetric with one scale per output channel. Activations are quantised per tensor: with
    scales calibrated on samples (static: an answer depends on its own input alone), or, without samples,
    with scales that the runtime computes from the whole batch (dynamic: an answer changes a little with its
    batch mates and padding). A weight that is a constant expression (after ``kron``) stays one: its leaves
    are stored in 8 or 16 bits, and the runtime quantises the result when the session is made.

    Left alone, and listed with the reason: products of two activations (attention), linears narrower than
    16, weights that something else needs in float, linears whose output would fall below ``min_sqnr_db``,
    small embeddings, and what is quantised already. Activation outliers are moved into the weights
    (SmoothQuant, arXiv:2211.10438) only where the preceding normalisation is read by quantised linears
    alone, since it is exact only there.
    """

    name: ClassVar[str] = "int8"
    contract: ClassVar[Contract] = Lossy(min_sqnr_db=12.0)

    scheme: str = option(
        "auto",
        "scales of activations: calibrated (static) or computed per batch (dynamic); auto: by samples",
        choices=("auto", "static", "dynamic"),
    )
    calibrate: str = option(
        "auto",
        "range of an activation: all values, a percentile, least squares; auto: best for its linears",
        choices=("auto", *_METHODS),
    )
    percentile: float = option(
        99.99, "share of the values that the percentile range covers", unit="%", minimum=50.0, maximum=100.0
    )
    weights: str = option(
        "auto",
        "int8 values that weights use: 8bit, 7bit, or pairs (neighbours add up to 128 at most, for x86 "
        "without VNNI); auto asks the target",
        choices=("auto", "8bit", "7bit", "pairs"),
    )
    layers: str = option("*", "glob over the names of linears and embeddings")
    embeddings: bool = option(True, "store embeddings in int8, too")
    smooth: bool = option(True, "move outliers of activations into weights where that is exact and helps")
    alpha: float = option(0.5, "share of the outliers that smooth moves", minimum=0.0, maximum=1.0)
    samples: int = option(300, "calibration samples used, at most", minimum=1)
    min_sqnr_db: float = option(
        8.0, "leave a linear in float when its own output would fall below this SQNR", unit="dB"
    )

    def run(self, model: Model, ctx: Context) -> None:
        """Quantise linears and embeddings in place.

        Raises:
            UsageError: the scheme needs samples that are not there, or the target cannot do it.
        """
        samples = self._samples(ctx)
        signed = ctx.capabilities.int8_activations == "int8"
        with Rewriter(model, ctx) as rw:
            chosen = self._admissible(rw)
            seen = _observe(model, chosen, samples, ctx) if samples else {}
            if samples:
                chosen = _reached(rw, chosen, seen)
            if samples and self.smooth:
                chosen = self._smooth(rw, chosen, seen, samples, signed)
            writer = QdqWriter(rw)
            done = 0
            ranges: dict[ir.Value, Affine] = {}
            for number, linear in enumerate(chosen):
                ctx.progress("int8", number, len(chosen))
                weight = low_bit_linear(linear, self._weight_range(ctx))
                if samples and linear.input not in ranges:
                    readers = [other for other in chosen if other.input is linear.input]
                    ranges[linear.input] = self._range(seen[linear.input], readers, signed)
                done += self._linear(
                    rw, writer, linear, weight, seen.get(linear.input), ranges.get(linear.input)
                )
            self._tables(rw, writer)
            ctx.progress("int8", len(chosen), len(chosen))
            self._notes(rw, model, done, static=samples is not None)

    # ---- what to do

    def _samples(self, ctx: Context) -> Samples | None:
        """The calibration samples of a static scheme, None for a dynamic one."""
        given = ctx.samples if ctx.samples is not None and not ctx.samples.synthetic else None
        if given is None and self.scheme == "static":
            raise UsageError(f"{self}: static scales are calibrated on samples; give some with --data")
        if given is not None and self.scheme != "dynamic":
            return given.first(-(-self.samples // given.per_row))
        if not ctx.capabilities.int8_dynamic:
            raise UsageError(
                f"{self}: the target cannot compute scales of activations at run time; "
                "give samples with --data, so that they are calibrated"
            )
        return None

    def _weight_range(self, ctx: Context) -> WeightRange:
        if self.weights != "auto":
            return cast("WeightRange", self.weights)
        return "pairs" if ctx.capabilities.int8_weight_bits < 8 else "8bit"

    def _range(self, activation: Activation, readers: Sequence[Linear], signed: bool) -> Affine:
        """The range of an activation; ``auto`` compares methods by the error of what is computed from it."""
        methods = _METHODS if self.calibrate == "auto" else (cast("Calibration", self.calibrate),)
        found = [
            quantisation(activation.histogram, method, signed=signed, percentile=self.percentile)
            for method in methods
        ]
        if len(found) == 1:
            return found[0]
        rows = activation.sample.rows
        weights = np.concatenate([reader.dense() for reader in readers], axis=1)
        errors = [float(np.sum(((range_.fake_quantise(rows) - rows) @ weights) ** 2)) for range_ in found]
        return found[int(np.argmin(errors))]

    def _admissible(self, rw: Rewriter) -> list[Linear]:
        candidates = linears(rw.model, self.layers)
        nodes = {linear.node for linear in candidates}
        tables = {table.weight for table in self._lookups(rw.model)}
        reasons = [linear_reason(linear, nodes, tables, rw.ctx.capabilities) for linear in candidates]
        for linear, reason in zip(candidates, reasons, strict=True):
            if reason:
                rw.skip(linear, reason)
        return [linear for linear, reason in zip(candidates, reasons, strict=True) if not reason]

    def _lookups(self, model: Model) -> list[Embedding]:
        return embeddings(model, self.layers) if self.embeddings else []

    def _tables(self, rw: Rewriter, writer: QdqWriter) -> None:
        for table in self._lookups(rw.model):
            if table.weight in writer.tables:
                rw.touch(table, "shared with a linear")
                writer.embedding_from(table, *writer.tables[table.weight])
                continue
            reason = table_reason(table, rw.ctx.capabilities)
            if reason:
                rw.skip(table, reason)
            else:
                _embedding(rw, writer, table)

    # ---- smoothing

    def _smooth(
        self,
        rw: Rewriter,
        chosen: list[Linear],
        seen: dict[ir.Value, Activation],
        samples: Samples,
        signed: bool,
    ) -> list[Linear]:
        """Equalise where it is exact and helps; returns the linears as they are then, updates ``seen``."""
        reasons: Counter[str] = Counter()
        smoothed: list[ir.Value] = []
        for value, activation in list(seen.items()):
            readers = [linear for linear in chosen if linear.input is value]
            item = equalisable(value, readers)
            if any(tied_table(reader) for reader in readers):
                item = "an embedding shares the weight that would take them"
            if isinstance(item, Equalisable):
                factors = self._factors(activation, readers, signed)
                item = item if factors is not None else "it would not lower the error"
            if isinstance(item, str) or factors is None:
                reasons[str(item)] += 1
                continue
            divide(rw, item, factors)
            smoothed.append(value)
        for reason, count in reasons.items():
            rw.note(f"outliers of {count} activations were not moved into weights: {reason}")
        if not smoothed:
            return chosen
        rw.note(f"outliers of {len(smoothed)} activations were moved into the weights that read them")
        nodes = {linear.node for linear in chosen}
        chosen = [linear for linear in linears(rw.model, self.layers) if linear.node in nodes]
        again = [linear for linear in chosen if linear.input in smoothed]
        seen.update(_observe(rw.model, again, samples, rw.ctx))
        return chosen

    def _factors(self, activation: Activation, readers: Sequence[Linear], signed: bool) -> np.ndarray | None:
        """Factors per feature, or None where quantising with them is not better than without."""
        weights = np.concatenate([reader.dense() for reader in readers], axis=1)
        factors = smoothing(activation.peaks, np.abs(weights).max(axis=1), self.alpha)
        rows = activation.sample.rows
        plain = _joint_sqnr_db(rows, weights, signed)
        return factors if _joint_sqnr_db(rows / factors, weights * factors[:, None], signed) > plain else None

    # ---- writing

    def _linear(
        self,
        rw: Rewriter,
        writer: QdqWriter,
        linear: Linear,
        weight: LowBitWeight,
        activation: Activation | None,
        range_: Affine | None,
    ) -> bool:
        dense, low = linear.dense(), weight.quantised.dequantise()
        if activation is None or range_ is None:
            figure = sqnr_db(dense, low)
        else:
            rows = activation.sample.rows
            figure = sqnr_db(rows @ dense, range_.fake_quantise(rows) @ low)
        if figure < self.min_sqnr_db:
            rw.skip(linear, f"its own SQNR would be below {self.min_sqnr_db:g} dB", sqnr_db=figure)
            return False
        rw.touch(linear, "stays an expression" if weight.is_expression else "", sqnr_db=figure)
        if range_ is None:
            writer.dynamic(linear, weight)
        else:
            writer.static(linear, range_, weight)
        return True

    def _notes(self, rw: Rewriter, model: Model, done: int, *, static: bool) -> None:
        products = [
            node
            for node in model.graph
            if node.op_type == "MatMul" and not node.domain and not any(is_constant(x) for x in node.inputs)
        ]
        if products:
            rw.note(
                f"{len(products)} products of two activations (attention) stay in float: "
                "quantising both sides costs a CPU more than the product"
            )
        if done and not static:
            rw.note(
                "scales are computed from the whole batch: an answer changes a little with its batch mates "
                "and with padding; with samples (--data) they are calibrated once, and it does not"
            )


def _embedding(rw: Rewriter, writer: QdqWriter, table: Embedding) -> None:
    if stays_expression(table):
        rw.touch(table, "stays an expression")
        writer.leaves(low_bit_leaves(table.weight), table.node)
        return
    quantised = low_bit_table(table)
    figure = sqnr_db(table.dense(), quantised.dequantise())
    rw.touch(
        table, "one scale per row" if quantised.scale.ndim == 2 else "one scale per column", sqnr_db=figure
    )
    writer.embedding(table, quantised)


def _observe(
    model: Model, chosen: Sequence[Linear], samples: Samples, ctx: Context
) -> dict[ir.Value, Activation]:
    seen = {linear.input: Activation() for linear in chosen}
    observe(model, seen, samples, progress=ctx.progress)
    return seen


def _reached(rw: Rewriter, chosen: Sequence[Linear], seen: dict[ir.Value, Activation]) -> list[Linear]:
    """The linears whose input calibration has seen; the others are skipped."""
    for value in [value for value, activation in seen.items() if activation.histogram.total == 0]:
        del seen[value]
    for linear in chosen:
        if linear.input not in seen:
            rw.skip(linear, "no sample reached it, or its input was never finite: its range is unknown")
    return [linear for linear in chosen if linear.input in seen]


def _joint_sqnr_db(rows: np.ndarray, weights: np.ndarray, signed: bool) -> float:
    """SQNR of rows · weights [in, out] when both are quantised to their full range."""
    range_ = affine(float(rows.min(initial=0.0)), float(rows.max(initial=0.0)), signed=signed)
    return sqnr_db(rows @ weights, range_.fake_quantise(rows) @ quantise_weight(weights).dequantise())
