"""What comparisons, Not and Where say."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from graphcompress.ranges.interval import FALSE, TRUE, UNIT, Interval, Operands, Transfer, hull


def where(node: ir.Node, operands: Operands) -> Interval | None:
    """One of two, or their hull; what guards a Softmax against NaN keeps its range."""
    condition, then, otherwise = operands
    if condition == TRUE:
        return then
    if condition == FALSE:
        return otherwise
    # A Softmax over scores of unknown range may be NaN, which is exactly what the guard replaces.
    if _guards_softmax(node):
        return hull([then, UNIT])
    return hull([then, otherwise])


def _guards_softmax(node: ir.Node) -> bool:
    """Whether ``node`` is Where(IsNaN(x), …, x) with x of a Softmax: what is not NaN lies in [0, 1]."""
    test = None if node.inputs[0] is None else node.inputs[0].producer()
    x = node.inputs[2]
    source = None if x is None else x.producer()
    if test is None or source is None or test.domain or source.domain:
        return False
    return test.op_type == "IsNaN" and test.inputs[0] is x and source.op_type == "Softmax"


def compare(
    certain: Callable[[Interval, Interval], bool], opposite: Callable[[Interval, Interval], bool]
) -> Transfer:
    """True or false when the operands do not overlap."""

    def transfer(node: ir.Node, operands: Operands) -> Interval | None:
        a, b = operands
        if a is None or b is None:
            return UNIT
        return TRUE if certain(a, b) else FALSE if opposite(a, b) else UNIT

    return transfer


def is_nan(node: ir.Node, operands: Operands) -> Interval | None:
    """What has an interval is not NaN."""
    return UNIT if operands[0] is None else FALSE


def not_(node: ir.Node, operands: Operands) -> Interval | None:
    """True and false change places."""
    return UNIT if operands[0] is None else Interval(1 - operands[0].high, 1 - operands[0].low)
