"""What every rule is and uses: its type, and whether one value may stand for another."""

from __future__ import annotations

from collections.abc import Callable

import onnx_ir as ir

from graphcompress.rewrite.rewriter import Rewriter

Rule = Callable[[Rewriter, ir.Node], str | None]
"""Edits the graph around a node and says what it removed, or returns None and edits nothing."""


def replaceable(old: ir.Value, new: ir.Value) -> bool:
    """Whether ``new`` may stand for ``old``: a graph output keeps its name, which an input cannot take."""
    # An output of a branch has to be made in that branch, and what a branch makes is not there outside.
    if old.graph is not new.graph and new.graph is not None:
        return False
    if not old.is_graph_output():
        return True
    return not (new.is_graph_output() or new.is_graph_input() or new.is_initializer())
