"""Finds how few linears have to stay in float for the whole model to keep its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graphcompress.passes.quantize.decide import LinearForm, Plan, TableForm

Measure = Callable[[Plan], float]
"""Relative error of the outputs of the model when a plan is carried out."""

TRIALS = 12
"""At most this many plans are measured to put linears back after the search: each is a run of the model."""


@dataclass(frozen=True)
class Choice:
    """What is quantised, and what the outputs of the model oblige to leave in float."""

    plan: Plan
    left: Sequence[LinearForm] = ()
    tables_left: Sequence[TableForm] = ()


def fewest_in_float(plan: Plan, limit: float, measure: Measure) -> Choice:
    """Leave out of ``plan``, whose error is above ``limit``, as few linears as it takes.

    Linears are ranked by what is left of their own product, every row counting alike; the shortest run of
    the worst that suffices is found by bisection, and then those that were not to blame are put back.
    """
    # Embeddings come first: they are at fault for everything downstream, so linears are judged with them
    # settled.
    tables_left = plan.tables if measure(Plan([], plan.tables)) > limit else []
    tables = [] if tables_left else plan.tables
    ranked = sorted(plan.linears, key=lambda form: -form.row_error)

    def without(left: Sequence[LinearForm]) -> Plan:
        out = {form.linear.node for form in left}
        return Plan([form for form in plan.linears if form.linear.node not in out], tables)

    def enough(left: Sequence[LinearForm]) -> bool:
        return measure(without(left)) <= limit

    # The whole plan is known to fail, so none left out is no candidate, unless tables went back to float
    # just now.
    few, many = (-1 if tables_left else 0), len(ranked)
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if enough(ranked[:middle]) else (middle, many)
    left = _put_back(ranked[:many], enough)
    return Choice(without(left), left, tables_left)


def _put_back(
    left: Sequence[LinearForm], enough: Callable[[Sequence[LinearForm]], bool]
) -> Sequence[LinearForm]:
    """Take out of ``left`` what was not to blame: halves, quarters, … from the least bad end."""
    size, end = max(1, len(left) // 2), len(left)
    for _ in range(TRIALS):
        if end <= 0:
            break
        start = max(0, end - size)
        fewer = [*left[:start], *left[end:]]
        if enough(fewer):
            left, end = fewer, start
        elif size > 1:
            size = (size + 1) // 2
        else:
            end -= 1
    return left
