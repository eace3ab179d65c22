"""Where units end: what is made of all of them together by something else than a weight."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from graphcompress.coupling.couplings import Group
from graphcompress.coupling.relations.rules import Relations

_SIZES = frozenset({"Shape", "Size"})


def is_zeroing(group: Group) -> bool:
    """Whether cutting a unit changes nothing but that its consumers read zeros in its place."""
    return group.exact and not shown(group)


def shown(group: Group) -> list[ir.Value]:
    """Values besides the outputs of its consumers that are made of all units of a group.

    The mean of attention maps over heads is one, and the product of hidden features with themselves. What
    only comes back to the units, such as the mean square of a norm that divides them by it, is none.
    """
    relations, leaf = group.relations, group.leaf
    nodes = list(relations.model.graph)
    consumers = {linear.node for linear in group.consumers}
    carrying = {node for node in nodes if leaf in _leaves(relations, node, outputs=True)}
    ending = [
        node
        for node in nodes
        if node.op_type not in _SIZES
        and node not in carrying
        and node not in consumers
        and leaf in _leaves(relations, node, outputs=False)
    ]
    if not ending:
        return []
    back = _coming_back(nodes, carrying)
    return [value for node in ending for value in node.outputs if value not in back]


def _coming_back(nodes: list[ir.Node], carrying: set[ir.Node]) -> set[ir.Value]:
    """Values that nothing reads but, at the end, nodes whose results have the units."""
    back: set[ir.Value] = set()
    for node in reversed(nodes):
        for value in node.outputs:
            readers = value.consumers()
            inside = all(one in carrying or back.issuperset(one.outputs) for one in readers)
            if inside and readers and not value.is_graph_output():
                back.add(value)
    return back


def _leaves(relations: Relations, node: ir.Node, *, outputs: bool) -> Iterator[int]:
    """Leaves of fixed size of the results of a node, or of its operands that are computed."""
    if outputs:
        found = [relations.output(node, index) for index in range(len(node.outputs))]
    else:
        computed = (i for i, value in enumerate(node.inputs) if not relations.constant(value))
        found = [relations.operand(node, index) for index in computed]
    for axes in found:
        yield from relations.fixed_leaves(axes)
