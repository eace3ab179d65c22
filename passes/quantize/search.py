"""Finds how few linears have to stay in float for the whole model to keep its outputs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from graphcompress.analysis.linears import stored_parameters
from graphcompress.passes.quantize.decide import LinearForm, Plan, TableForm
from graphcompress.passes.quantize.quantisable import tied_table

Measure = Callable[[Plan], float]
"""How much of what the outputs may lose a plan takes when it is carried out."""

BLOCKS = 8
"""So many blocks of forms, ranked by their own errors, are measured first."""

SPLITS = 12
"""At most this many blocks are halved to find what is to blame: each takes two runs of the model."""

TRIALS = 12
"""At most this many plans are measured to put linears back after the search: each is a run of the model."""


@dataclass(frozen=True)
class Choice:
    """What is quantised, and what the outputs of the model oblige to leave in float."""

    plan: Plan
    left: Sequence[LinearForm] = ()
    tables_left: Sequence[TableForm] = ()


@dataclass(frozen=True)
class _Unit:
    """What goes back to float together: a linear, or a table with all linears that multiply it."""

    linears: Sequence[LinearForm]
    tables: Sequence[TableForm]

    @property
    def error(self) -> float:
        return max(form.row_error for form in self.linears) if self.linears else self.tables[0].error

    @property
    def size(self) -> int:
        weight = self.linears[0].linear.weight if self.linears else self.tables[0].table.weight
        return max(1, stored_parameters(weight))


def fewest_in_float(plan: Plan, limit: float, measure: Measure, base: float = 0.0) -> Choice:
    """Leave out of ``plan``, whose error is above ``limit``, as few parameters as it takes.

    What a form costs the outputs shows only when the model runs with it. So the forms are ranked by what is
    left of their own product, every row counting alike; blocks of them are measured alone, and the block that
    costs most for each of its parameters is halved, until single forms are known to be at fault. The
    shortest run of the worst that suffices is found by doubling and bisection, and then those that were not
    to blame are put back. ``base`` is what is lost with nothing in 8 bits.
    """
    search = _FloatSearch(plan, limit, measure, base)
    ranked = search.ranked(sorted(_units(plan), key=lambda unit: -unit.error))
    few, many = 0, 1
    while many < len(ranked) and not search.enough(ranked[:many]):
        few, many = many, 2 * many
    many = min(many, len(ranked))
    while many - few > 1:
        middle = (few + many) // 2
        few, many = (few, middle) if search.enough(ranked[:middle]) else (middle, many)
    left = _put_back(ranked[:many], search.enough)
    return Choice(
        search.without(left),
        [form for unit in left for form in unit.linears],
        [table for unit in left for table in unit.tables],
    )


class _FloatSearch:
    """Plans of one search, by what they leave out."""

    def __init__(self, plan: Plan, limit: float, measure: Measure, base: float) -> None:
        self._plan, self._limit, self._measure, self._base = plan, limit, measure, base

    def without(self, left: Sequence[_Unit]) -> Plan:
        linears = {form for unit in left for form in unit.linears}
        tables = {table for unit in left for table in unit.tables}
        return Plan(
            [form for form in self._plan.linears if form not in linears],
            [table for table in self._plan.tables if table not in tables],
        )

    def enough(self, left: Sequence[_Unit]) -> bool:
        return self._measure(self.without(left)) <= self._limit

    def ranked(self, units: Sequence[_Unit]) -> Sequence[_Unit]:
        """``units``, first what costs most for each parameter, as far as that was measured."""
        size = -(-len(units) // BLOCKS)
        blocks = [self._measured(units[start : start + size]) for start in range(0, len(units), size or 1)]
        for _ in range(SPLITS):
            blocks.sort(key=lambda block: -block[0])
            # What is known to cost most stands in front; the first block behind it is looked into.
            at = next((index for index, (_, block) in enumerate(blocks) if len(block) > 1), None)
            if at is None:
                break
            _, block = blocks.pop(at)
            middle = len(block) // 2
            blocks += [self._measured(block[:middle]), self._measured(block[middle:])]
        blocks.sort(key=lambda block: -block[0])
        return [unit for _, block in blocks for unit in block]

    def _measured(self, units: Sequence[_Unit]) -> tuple[float, Sequence[_Unit]]:
        """What the outputs lose for each parameter with ``units`` alone in 8 bits."""
        alone = Plan(
            [form for unit in units for form in unit.linears],
            [table for unit in units for table in unit.tables],
        )
        cost = max(0.0, self._measure(alone) - self._base)
        return cost / sum(unit.size for unit in units), units


def _units(plan: Plan) -> list[_Unit]:
    tables = {table.table.weight: table for table in plan.tables}
    shared: dict[TableForm, list[LinearForm]] = {table: [] for table in plan.tables}
    units = []
    for form in plan.linears:
        table = tied_table(form.linear)
        if table in tables:
            shared[tables[table]].append(form)
        else:
            units.append(_Unit([form], []))
    return [*units, *(_Unit(forms, [table]) for table, forms in shared.items())]


def _put_back(left: Sequence[_Unit], enough: Callable[[Sequence[_Unit]], bool]) -> Sequence[_Unit]:
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
