"""kron: a weight becomes a sum of Kronecker products."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx_ir as ir
from threadpoolctl import threadpool_limits

from graphcompress.analysis.experts import Experts, all_experts
from graphcompress.analysis.linears import Embedding, Linear, embeddings, linears
from graphcompress.coupling.couplings import FFN, HEAD, couplings
from graphcompress.errors import UsageError
from graphcompress.graph.model import Model
from graphcompress.measure.calibrate import observe, portions, too_few
from graphcompress.numerics.kronecker import Split, row_splits, splits
from graphcompress.numerics.moments import SecondMoment
from graphcompress.passes.kron.choice import (
    Factored,
    FactoredExperts,
    Wish,
    choose_embedding,
    choose_experts,
    choose_linear,
)
from graphcompress.passes.kron.presets import PRESETS, Role
from graphcompress.passes.kron.sharing import layout, readers, stored_tensor
from graphcompress.plugin.base import Pass
from graphcompress.plugin.context import Context
from graphcompress.plugin.contract import Contract, Lossy
from graphcompress.plugin.options import option
from graphcompress.plugin.record import Record
from graphcompress.rewrite.kronecker import write_expression, write_stack
from graphcompress.rewrite.rewriter import Rewriter

MAX_ERROR = 0.04
"""Relative output error that a layer may have when the options ask for nothing else."""

MOMENT_BYTES = 400_000_000
"""Second moments take at most this many bytes at a time; a larger model is calibrated in portions, front to
back."""

WORKERS = min(4, os.cpu_count() or 1)
"""Weights that are looked at side by side; each needs memory of a few times its own size."""

CALIBRATION_ROWS = 300
"""Rows of the data that are used; more make the second moments no better and the run longer."""

_SHAPE = re.compile(r"([1-9]\d*)x([1-9]\d*),([1-9]\d*)x([1-9]\d*)")
_FLOATS = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE)


@dataclass(frozen=True, eq=False)
class _Job:
    """One weight, all that read it, and the factors wanted."""

    uses: Sequence[Linear] | Sequence[Embedding]
    wish: Wish


@dataclass(frozen=True)
class Kron(Pass):
    """Replace weights by sums of Kronecker products Σᵣ Aᵣ ⊗ Bᵣ where the layer's output stays close.

    The linear stays one MatMul whose weight [in, out] is an expression over the stored factors, the embedding
    one Gather. Every factorisation of the two sizes is considered, low rank among them. With samples the
    factors are fitted to the output of the layer (second moment of its input), without them to the weight.

    Without options a weight is factored when the relative error of its layer's output, ‖X(W - Ŵ)‖ / ‖XW‖,
    stays within 0.04 while at least a quarter of its parameters goes; the others are listed with the error
    they would have at half the size. With ``ratio``: the factors with the least error that remove that share.
    With ``shape`` or ``preset``: these factors, whatever the error, unless ``max_error`` bounds it.

    Experts, a stack [experts, in, out], are factored one by one, with sizes and a rank that all share; with
    samples each is fitted to the inputs of all.

    The presets are the configurations of KroneckerBERT. As A [n1, m1] ⊗ B [n2, m2] for W [in, out], k8 has
    B 2×2 in attention, A 2×8 and 8×2 in the FFN, and n = 8 in the word embedding A [v, d/n] ⊗ B [1, n]; k21
    has B 16×2, A 2×16 and 16×2, n = 16; k19 is k21 with n = 12. At other widths than 768 the small factors
    stay and the large ones scale. A preset takes the word embedding, and the linears around attentions and in
    FFNs; not the pooler, the head, biases, positions or normalisation. Its accuracy is meant to be restored
    by distillation.

    Left alone, with the reason: weights that would not get smaller, that are also used in another way (tied),
    that are expressions already, or whose sizes do not divide.

    Sources: Van Loan & Pitsianis, "Approximation with Kronecker Products" (1993); KroneckerBERT,
    arXiv:2109.06243.
    """

    name: ClassVar[str] = "kron"
    also_called: ClassVar[Mapping[str, str]] = {
        **dict.fromkeys(("kronecker", "factorise", "factorize", "low_rank", "lowrank", "svd"), "kron")
    }
    contract: ClassVar[Contract] = Lossy(min_sqnr_db=10.0)

    only: str = option("*", "glob over weight names", aliases={"layers": None})
    rank: int | None = option(None, "number of terms (none: as the other options need)", minimum=1)
    shape: str = option("", 'sizes of the factors of W [in, out]: "384x384,2x2" is A 384×384 ⊗ B 2×2')
    ratio: float | None = option(None, "share of each weight to remove", minimum=0.0, maximum=0.999)
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
            raise UsageError(f"kron{{preset={self.preset}}} fixes the sizes: leave out shape and ratio")

    def run(self, model: Model, ctx: Context) -> Record:
        """Choose factors weight by weight and write those that keep the layer's output."""
        with Rewriter(model, ctx) as rw:
            jobs = list(self._linears(model, rw))
            tables = list(self._embeddings(model, rw)) if self.embeddings else []
            total, done = len(jobs) + len(tables), 0
            seen: list[tuple[int, int]] = []
            # Front to back: later inputs are observed on the graph whose earlier layers are factored
            # already, so that their fit makes up for it.
            for portion in portions(jobs, _moment_bytes, MOMENT_BYTES):
                moments = _moments(model, ctx, portion)
                seen += [(len(moment.total), moment.count) for moment in moments.values()]
                for job, choice in zip(portion, _choose_linears(portion, moments), strict=True):
                    _apply(rw, job, choice)
                    done += 1
                    ctx.progress(str(self), done, total)
            for job in tables:
                _apply(rw, job, _choose_table(job, ctx))
                done += 1
                ctx.progress(str(self), done, total)
            if few := too_few("a fit", seen):
                rw.note(few)
            self._advise(rw, ctx)
        return rw.record

    # ---- what is looked at

    def _linears(self, model: Model, rw: Rewriter) -> Iterator[_Job]:
        """One job per stored weight that can be factored; the reason is recorded for the others."""
        roles = _roles(model) if self.preset else {}
        by_tensor: dict[ir.Value, list[Linear]] = {}
        wishes: dict[ir.Value, Wish] = {}
        for linear in (*linears(model, self.only), *all_experts(model, self.only)):
            tensor = stored_tensor(linear.weight)
            role = roles.get(linear.node)
            if tensor is None:
                rw.skip(linear, "its weight is an expression already")
                continue
            if self.preset and role is None:
                rw.skip(linear, f"not around an attention or in an FFN; {self.preset} leaves it alone")
                continue
            width = linear.width if isinstance(linear, Experts) else linear.out_features
            wish = self._wish(role or "ffn", linear.weight, linear.in_features, width)
            if isinstance(wish, str):
                rw.skip(linear, wish)
                continue
            by_tensor.setdefault(tensor, []).append(linear)
            wishes[tensor] = wish
        for tensor, uses in by_tensor.items():
            # A shared weight is factored once, which is only possible where all its readers see it alike.
            forms = {(use.transposed, layout(use.weight), type(use)) for use in uses}
            if len(forms) > 1 or readers(tensor) != set(map(_reader, uses)):
                rw.skip(uses[0], "its weight is also used in another way (tied)")
            else:
                yield _Job(uses, wishes[tensor])

    def _embeddings(self, model: Model, rw: Rewriter) -> Iterator[_Job]:
        most_rows = max((table.rows for table in embeddings(model)), default=0)
        for table in embeddings(model, self.only):
            tensor = stored_tensor(table.weight)
            wish = self._wish("embedding", table.weight, table.rows, table.width)
            if tensor is None:
                rw.skip(table, "its table is an expression already")
            # A preset factors the word embedding alone; the tables of positions and token types are small.
            elif self.preset and table.rows < most_rows:
                rw.skip(table, f"not the word embedding; {self.preset} leaves it alone")
            elif layout(table.weight) or readers(tensor) != {table.node}:
                rw.skip(table, "its table is also used in another way (tied)")
            elif isinstance(wish, str):
                rw.skip(table, wish)
            else:
                yield _Job([table], wish)

    def _wish(self, role: Role, weight: ir.Value, rows: int, columns: int) -> Wish | str:
        """What the options want of a weight of these sizes, or why it cannot be met."""
        if weight.dtype not in _FLOATS:
            return f"its type {weight.dtype} is not a floating-point type"
        if not self.preset and not self.shape:
            bound = MAX_ERROR if self.ratio is None and self.max_error is None else self.max_error
            every = row_splits(rows, columns) if role == "embedding" else splits(rows, columns)
            return Wish(tuple(every), self.rank, self.ratio, bound)
        split = self._split(role, rows, columns)
        if split is None:
            return f"its sizes {rows}x{columns} are not those of {self.preset or self.shape}"
        return Wish((split,), self.rank or (1 if self.preset else None), self.ratio, self.max_error)

    def _split(self, role: Role, rows: int, columns: int) -> Split | None:
        if self.preset:
            return PRESETS[self.preset].split(role, rows, columns)
        split = Split(*map(int, re.findall(r"\d+", self.shape)))
        fits = (split.in_features, split.out_features) == (rows, columns)
        return split if fits and (role != "embedding" or split.n2 == 1) else None

    # ---- what is said

    def _advise(self, rw: Rewriter, ctx: Context) -> None:
        if ctx.samples is None:
            rw.note("no samples: errors are those of the weights; --data fits the factors to the outputs")
        left = sorted(item.figures["error"] for item in rw.skipped if "error" in item.figures)
        if left and not self.preset:
            median = left[len(left) // 2]
            # Half a step more, so that rounding to two digits never leaves the median out.
            rw.note(f"max_error={median + 0.005:.2f} would halve {(len(left) + 1) // 2} more weights")


def _reader(use: Linear) -> ir.Node:
    """The node that reads the weight of a linear: the one that looks experts up, where that is done."""
    return use.lookup if isinstance(use, Experts) and use.lookup is not None else use.node


def _choose_linears(
    jobs: Sequence[_Job], moments: dict[ir.Value, SecondMoment]
) -> Iterator[Factored | FactoredExperts]:
    """Factors in the order of ``jobs``: many small problems, so one thread for each and several at a time."""
    with threadpool_limits(limits=1, user_api="blas"), ThreadPoolExecutor(WORKERS) as pool:
        yield from pool.map(lambda job: _choose_linear(job, moments), jobs)


def _choose_linear(job: _Job, moments: dict[ir.Value, SecondMoment]) -> Factored | FactoredExperts:
    values = dict.fromkeys(use.node.inputs[0] for use in job.uses)
    # Linears that share a weight are fitted to the inputs of all of them.
    matrices = [moments[value].matrix() for value in values if value in moments]
    gram = np.sum(matrices, axis=0) if matrices else None
    first = job.uses[0]
    if isinstance(first, Experts):
        return choose_experts(first.stack(), gram, job.wish)
    return choose_linear(first.dense(), gram, job.wish)


def _choose_table(job: _Job, ctx: Context) -> Factored:
    first = job.uses[0]
    counts = _counts(first, ctx) if isinstance(first, Embedding) else None
    return choose_embedding(first.dense(), counts, job.wish)


def _apply(rw: Rewriter, job: _Job, choice: Factored | FactoredExperts) -> None:
    first = job.uses[0]
    figures = {} if choice.error is None else {"error": choice.error}
    if not choice.factors:
        rw.skip(first, choice.reason, **figures, **choice.needs)
        return
    parts = choice.factors if isinstance(choice.factors, tuple) else (choice.factors,)
    after = sum(each.parameters for each in parts)
    many = f" for each of {len(parts)} experts" if isinstance(first, Experts) else ""
    smaller = f"{first.parameters / after:.1f} × smaller"
    detail = f"{parts[0].split} rank {parts[0].rank}{many}, {smaller}, error {choice.error:.3f}"
    rw.touch(first, detail, parameters_after=after, **figures)
    dtype = first.weight.dtype or ir.DataType.FLOAT
    if isinstance(first, Experts):
        weight = write_stack(rw, parts, first.name, dtype, before=_reader(first))
    else:
        weight = write_expression(rw, parts[0], first.name, dtype, before=first.node)
    for use in job.uses:
        rw.set_weight(use, weight)


def _roles(model: Model) -> dict[ir.Node, Role]:
    """Nodes of the linears around attentions and in FFNs."""
    roles: dict[ir.Node, Role] = {}
    for group in couplings(model):
        if group.kind in (FFN, HEAD):
            role: Role = "attention" if group.kind == HEAD else "ffn"
            roles.update({linear.node: role for linear in (*group.producers, *group.consumers)})
    return roles


def _moment_bytes(job: _Job) -> int:
    return sum(8 * use.in_features**2 for use in job.uses if isinstance(use, Linear))


def _moments(model: Model, ctx: Context, portion: Sequence[_Job]) -> dict[ir.Value, SecondMoment]:
    """Second moments of the inputs of a portion, as the graph is now; none without samples."""
    if ctx.samples is None:
        return {}
    moments: dict[ir.Value, SecondMoment] = {}
    for use in (use for job in portion for use in job.uses if isinstance(use, Linear)):
        value = use.node.inputs[0]
        if value is not None and value not in moments:
            moments[value] = SecondMoment(use.in_features)
    samples = ctx.samples.first(CALIBRATION_ROWS)
    observe(model, moments, samples, progress=ctx.progress, text="kron: inputs of the linears")
    return moments


def _counts(table: Embedding, ctx: Context) -> np.ndarray | None:
    """How often each row of a table is read in the samples, when its indices are an input of the model."""
    if ctx.samples is None or not table.indices.is_graph_input():
        return None
    name = table.indices.name or ""
    counts = np.zeros(table.rows, np.float64)
    for feed in ctx.samples.first(CALIBRATION_ROWS).feeds:
        counts += np.bincount(np.asarray(feed[name]).ravel(), minlength=table.rows)[: table.rows]
    return counts
