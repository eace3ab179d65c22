"""kron: a weight becomes a sum of Kronecker products."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir

from graphcompress.analysis.linears import Embedding, Linear, embeddings, linears
from graphcompress.base import Context, Contract, Lossy, Pass
from graphcompress.calibrate import observe
from graphcompress.errors import UsageError
from graphcompress.kronecker_forms import write_expression
from graphcompress.model import Model
from graphcompress.numerics.kronecker import Split, row_splits, splits
from graphcompress.numerics.kronecker_choice import Choice, Wish, choose_embedding, choose_linear
from graphcompress.numerics.moments import SecondMoment
from graphcompress.options import option
from graphcompress.rewrite import Rewriter

MAX_ERROR = 0.05
"""Relative output error that a layer may have when the options ask for nothing else."""

MOMENT_BYTES = 400_000_000
"""Most memory for second moments at a time; a larger model is calibrated in portions, front to back."""

CALIBRATION_ROWS = 300
"""Samples used; more make the second moments no better and the run longer."""

_SHAPE = re.compile(r"(\d+)x(\d+),(\d+)x(\d+)")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)
_LAYOUT = frozenset({"Transpose", "Identity", "Reshape", "Squeeze", "Unsqueeze"})


@dataclass(frozen=True)
class Preset:
    """A configuration of KroneckerBERT: sizes of the small factors, [in, out]; the large ones follow.

    Attributes:
        square: B of a square weight (attention).
        widening: A of a weight with more outputs than inputs (first of an FFN); the second has it transposed.
        embedding: n, width of B of the word embedding.
    """

    square: tuple[int, int]
    widening: tuple[int, int]
    embedding: int

    def split(self, in_features: int, out_features: int) -> tuple[int, int, int, int]:
        """Sizes (n1, m1, n2, m2) for a weight; they need not divide."""
        if in_features == out_features:
            n2, m2 = self.square
            return in_features // n2, out_features // m2, n2, m2
        n1, m1 = self.widening if in_features < out_features else self.widening[::-1]
        return n1, m1, in_features // n1, out_features // m1


PRESETS = {
    "k8": Preset((2, 2), (2, 8), 8),
    "k19": Preset((16, 2), (2, 16), 12),
    "k21": Preset((16, 2), (2, 16), 16),
}


@dataclass(frozen=True)
class Kron(Pass):
    """Replace weights by sums of Kronecker products Σᵣ Aᵣ ⊗ Bᵣ where the layer's output stays close.

    The linear stays one MatMul whose weight is an expression over the stored factors, the embedding one
    Gather. Every factorisation of the two sizes is considered, low rank among them; with samples the factors
    are fitted to the output of the layer (second moment of its input), without them to the weight.

    Without options: a weight is factored when the relative error of its layer's output, ‖X(W - Ŵ)‖ / ‖XW‖,
    stays within 0.05 and the factors are smaller; the others are listed with the error they would have at
    half the size. With ``ratio``: the factors with the least error that remove that share. With ``shape``, or
    a preset: these factors, whatever the error, unless ``max_error`` bounds it.

    Presets are the configurations of KroneckerBERT (arXiv:2109.06243, Table 1, and the 19x of its first
    version), as A [n1, m1] ⊗ B [n2, m2] for W [in, out]: k8 has B 2×2 in attention, A 2×8 and 8×2 in the FFN,
    n = 8 in the word embedding A [v, d/n] ⊗ B [1, n]; k21 has B 16×2, A 2×16 and 16×2, n = 16; k19 is k21
    with n = 12. At other widths than 768 these small factors stay and the large ones scale. A preset takes
    the word embedding and every linear whose like is found again in another layer; not the pooler, the head,
    biases, positions or normalisation. Its accuracy is meant to be restored by distillation.

    Left alone, with the reason: weights that would not get smaller, that are used in several ways, that are
    expressions already, or whose sizes do not divide.

    Source: Van Loan & Pitsianis, "Approximation with Kronecker Products" (1993).
    """

    name: ClassVar[str] = "kron"
    contract: ClassVar[Contract] = Lossy(min_sqnr_db=10.0)

    layers: str = option("*", "glob over weight names")
    rank: int | None = option(None, "number of terms (none: as the other options need)", minimum=1)
    shape: str = option(
        "", 'sizes of the factors for W [in, out], such as "384x384,2x2" for A 384×384 ⊗ B 2×2'
    )
    ratio: float | None = option(
        None, "share of each weight's parameters to remove", minimum=0.0, maximum=0.999
    )
    max_error: float | None = option(
        None,
        f"largest relative error of a layer's output ({MAX_ERROR} when no shape, ratio or preset is given)",
        minimum=0.0,
        maximum=1.0,
    )
    preset: str = option("", "configuration of KroneckerBERT", choices=("", *PRESETS))
    embeddings: bool = option(True, "embedding tables too (a preset: the word embedding)")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.shape and not _SHAPE.fullmatch(self.shape):
            raise UsageError(f'kron{{shape={self.shape!r}}}: expected two sizes such as "384x384,2x2"')
        if self.preset and (self.shape or self.ratio is not None):
            raise UsageError("kron{preset=…} fixes the sizes: leave out shape and ratio")

    def run(self, model: Model, ctx: Context) -> None:
        """Choose factors weight by weight and write those that keep the layer's output."""
        with Rewriter(model, ctx) as rw:
            tables = self._embeddings(model, rw) if self.embeddings else []
            groups = list(self._linears(model, rw))
            total = len(groups) + len(tables)
            done = 0
            for table in tables:
                ctx.progress(f"{self}", done, total)
                choice = choose_embedding(
                    table.dense(), _counts(table, ctx), self._wish(table, embedding=True)
                )
                self._decide(rw, [table], choice)
                done += 1
            for portion in _portions(groups):
                moments = _moments(model, ctx, portion)
                for uses in portion:
                    ctx.progress(f"{self}", done, total)
                    gram = _moment(uses, moments)
                    self._decide(rw, uses, choose_linear(uses[0].dense(), gram, self._wish(uses[0])))
                    done += 1
            for table in tables:
                ctx.progress(f"{self}", done, total)
                choice = choose_embedding(table.dense(), _counts(table, ctx), self._wish(table))
                self._decide(rw, [table], choice)
                done += 1
            ctx.progress(f"{self}", total, total)
            if ctx.samples is None:
                rw.note(
                    "without samples the weights' own error is bounded; --data fits factors to the outputs"
                )

    # ---- what is looked at

    def _linears(self, model: Model, rw: Rewriter) -> Iterator[list[Linear]]:
        """Linears that share one weight, weight by weight; the reason is recorded for those left out."""
        found = linears(model)
        repeated = _repeated(found) if self.preset else {linear.node for linear in found}
        by_leaf: dict[ir.Value, list[Linear]] = {}
        chosen = {linear.node for linear in linears(model, self.layers)}
        for linear in found:
            leaf = _stored(linear.weight)
            if linear.node not in chosen:
                continue
            if leaf is None:
                rw.skip(linear, "its weight is an expression already")
            elif linear.node not in repeated:
                rw.skip(linear, "not part of a repeated layer, which a preset is for")
            elif reason := self._unfit(linear.weight, linear.in_features, linear.out_features):
                rw.skip(linear, reason)
            else:
                by_leaf.setdefault(leaf, []).append(linear)
        for leaf, uses in by_leaf.items():
            forms = {(use.transposed, tuple(_layout(use.weight))) for use in uses}
            if len(forms) > 1 or _readers(leaf) != {use.node for use in uses}:
                rw.skip(uses[0], "its weight is also used in another way (tied)")
            else:
                yield uses

    def _embeddings(self, model: Model, rw: Rewriter) -> list[Embedding]:
        every = embeddings(model)
        word = max(every, key=lambda table: table.rows, default=None)
        found = []
        for table in embeddings(model, self.layers):
            leaf = _stored(table.weight)
            if leaf is None:
                rw.skip(table, "its table is an expression already")
            elif self.preset and (word is None or table.node is not word.node):
                rw.skip(table, "not the word embedding, the only one that a preset is for")
            elif _layout(table.weight) or _readers(leaf) != {table.node}:
                rw.skip(table, "its table is also used in another way (tied)")
            elif reason := self._unfit(table.weight, table.rows, table.width, embedding=True):
                rw.skip(table, reason)
            else:
                found.append(table)
        return found

    def _unfit(self, weight: ir.Value, rows: int, columns: int, *, embedding: bool = False) -> str | None:
        """Why a weight of these sizes cannot be factored as the options ask, or None."""
        if weight.dtype not in _FLOATS:
            return f"its type {weight.dtype} is not a floating-point type"
        sizes = self._sizes(rows, columns, embedding=embedding)
        if sizes is not None and (sizes[0] * sizes[2], sizes[1] * sizes[3]) != (rows, columns):
            wanted = f"{sizes[0]}x{sizes[1]},{sizes[2]}x{sizes[3]}"
            return f"its sizes {rows}x{columns} are not those of {self.preset or 'shape'} {wanted}"
        return None

    def _sizes(self, rows: int, columns: int, *, embedding: bool = False) -> tuple[int, int, int, int] | None:
        """Sizes that the options fix for a weight, or None."""
        if self.preset and embedding:
            width = PRESETS[self.preset].embedding
            return rows, columns // width, 1, width
        if self.preset:
            return PRESETS[self.preset].split(rows, columns)
        match = _SHAPE.fullmatch(self.shape)
        return None if match is None else (int(match[1]), int(match[2]), int(match[3]), int(match[4]))

    def _wish(self, subject: Linear | Embedding) -> Wish:
        if isinstance(subject, Embedding):
            sizes = self._sizes(subject.rows, subject.width, embedding=True)
            every = row_splits(subject.rows, subject.width)
        else:
            sizes = self._sizes(subject.in_features, subject.out_features)
            every = splits(subject.in_features, subject.out_features)
        free = sizes is None and self.ratio is None
        return Wish(
            splits=tuple(every) if sizes is None else (Split(*sizes),),
            rank=self.rank or (1 if self.preset else None),
            ratio=self.ratio,
            max_error=MAX_ERROR if free and self.max_error is None else self.max_error,
        )

    # ---- what is done

    def _decide(self, rw: Rewriter, uses: Sequence[Linear | Embedding], choice: Choice) -> None:
        first = uses[0]
        figures = {} if choice.error is None else {"error": choice.error}
        if choice.factors is None:
            rw.skip(first, choice.reason, **figures)
            return
        factors = choice.factors
        detail = f"{factors.split} rank {factors.rank}, error {choice.error:.3f}"
        rw.touch(first, detail, **figures, parameters_after=factors.parameters)
        dtype = first.weight.dtype or ir.DataType.FLOAT
        weight = write_expression(rw, factors, first.name, dtype, before=first.node)
        for use in uses:
            rw.set_weight(use, weight)


def _stored(weight: ir.Value) -> ir.Value | None:
    """The one stored tensor that ``weight`` is a mere layout of, or None."""
    while weight.const_value is None:
        node = weight.producer()
        if node is None or node.op_type not in _LAYOUT or node.inputs[0] is None:
            return None
        weight = node.inputs[0]
    return weight


def _layout(weight: ir.Value) -> list[str]:
    """Operators between the stored tensor and ``weight``."""
    path = []
    while (
        weight.const_value is None and (node := weight.producer()) is not None and node.inputs[0] is not None
    ):
        path.append(node.op_type)
        weight = node.inputs[0]
    return path


def _readers(leaf: ir.Value) -> set[ir.Node]:
    """Nodes that read a stored tensor, looked up through constant layout operators."""
    found: set[ir.Node] = set()
    pending = [leaf]
    while pending:
        value = pending.pop()
        for node, index in value.uses():
            if node.op_type in _LAYOUT and index == 0:
                pending.append(node.outputs[0])
            else:
                found.add(node)
    return found


def _repeated(found: Sequence[Linear]) -> set[ir.Node]:
    """Nodes of linears whose like (sizes, what comes before, what comes after) is found more than once."""

    def kind(linear: Linear) -> tuple[object, ...]:
        before = linear.input.producer()
        after = sorted(node.op_type for node, _ in linear.output.uses())
        return linear.in_features, linear.out_features, before and before.op_type, *after

    counts = Counter(kind(linear) for linear in found)
    return {linear.node for linear in found if counts[kind(linear)] > 1}


def _portions(groups: Sequence[list[Linear]]) -> Iterator[list[list[Linear]]]:
    portion: list[list[Linear]] = []
    room = MOMENT_BYTES
    for uses in groups:
        size = sum(8 * use.in_features**2 for use in uses)
        if portion and size > room:
            yield portion
            portion, room = [], MOMENT_BYTES
        portion.append(uses)
        room -= size
    if portion:
        yield portion


def _moments(model: Model, ctx: Context, portion: Sequence[Sequence[Linear]]) -> dict[ir.Value, SecondMoment]:
    if ctx.samples is None:
        return {}
    moments: dict[ir.Value, SecondMoment] = {}
    for uses in portion:
        for use in uses:
            moments.setdefault(use.node.inputs[0] or use.input, SecondMoment(use.in_features))
    observe(model, moments, ctx.samples.first(CALIBRATION_ROWS), progress=ctx.progress, text="kron: inputs")
    return moments


def _moment(uses: Sequence[Linear], moments: dict[ir.Value, SecondMoment]) -> np.ndarray | None:
    """Second moment of the input of a weight, summed over its uses; None without samples."""
    if not moments:
        return None
    values = {use.node.inputs[0] or use.input for use in uses}
    matrices = [moments[value].matrix() for value in values]
    total: np.ndarray = np.sum(matrices, axis=0)
    return total


def _counts(table: Embedding, ctx: Context) -> np.ndarray | None:
    """How often each row of a table is read in the samples, when its indices are an input of the model."""
    if ctx.samples is None or not table.indices.is_graph_input():
        return None
    name = table.indices.name or ""
    counts = np.zeros(table.rows, np.float64)
    for feed in ctx.samples.first(CALIBRATION_ROWS).feeds:
        counts += np.bincount(np.asarray(feed[name]).ravel(), minlength=table.rows)[: table.rows]
    return counts
