"""Carries a plan out: every linear and embedding in it takes its 8-bit form, and is recorded as touched."""

from __future__ import annotations

from graphcompress.analysis.experts import Experts
from graphcompress.numerics.quantise import PerToken
from graphcompress.passes.quantize.decide import LinearForm, Plan, TableForm
from graphcompress.passes.quantize.qdq import QdqWriter
from graphcompress.passes.quantize.quantisable import multiplies_stacks
from graphcompress.rewrite.rewriter import Rewriter


def write(rw: Rewriter, plan: Plan) -> None:
    """Rewrite the graph that ``plan`` was made for, or put on."""
    writer = QdqWriter(rw)
    for number, form in enumerate(plan.linears):
        rw.ctx.progress("int8", number, len(plan.linears))
        _linear(rw, writer, form)
    for table in plan.tables:
        _table(rw, writer, table)
    rw.ctx.progress("int8", len(plan.linears), len(plan.linears))


def _linear(rw: Rewriter, writer: QdqWriter, form: LinearForm) -> None:
    detail = "stays an expression" if form.weight.is_expression else ""
    if isinstance(form.linear, Experts):
        _experts(rw, writer, form, form.linear, detail)
        return
    rw.touch(form.linear, detail, error=form.error)
    if form.range is None:
        writer.dynamic(form.linear, form.weight)
    elif isinstance(form.range, PerToken):
        writer.per_token(form.linear, form.weight)
    else:
        writer.static(form.linear, form.range, form.weight)


def _experts(rw: Rewriter, writer: QdqWriter, form: LinearForm, experts: Experts, detail: str) -> None:
    if multiplies_stacks(rw.ctx.capabilities):
        rw.touch(experts, detail or f"{experts.experts} experts", error=form.error)
        writer.experts(experts, None if isinstance(form.range, PerToken) else form.range, form.weight)
    else:
        rw.touch(experts, "stored in 8 bits; the target has no integer product of a stack", error=form.error)
        writer.stored_experts(experts, form.weight)


def _table(rw: Rewriter, writer: QdqWriter, form: TableForm) -> None:
    table = form.table
    # A linear that shares the table, or an embedding before this one, has written it.
    if table.weight in writer.tables:
        rw.touch(table, "shared with another reader")
        writer.embedding_from(table, *writer.tables[table.weight])
    elif form.leaves is not None:
        rw.touch(table, "stays an expression")
        writer.leaves(form.leaves, table.node)
    elif form.quantised is not None:
        detail = "one scale per row" if form.quantised.scale.ndim == 2 else "one scale per column"
        rw.touch(table, detail, error=form.error)
        writer.embedding(table, form.quantised)
    else:
        rw.skip(table, "its table is also read by a linear that stays in float")
