"""The library's constant folding, with a bound on what it remembers of sizes."""

from __future__ import annotations

import onnx_ir as ir
from onnxscript.optimizer._constant_folding import FoldConstantsPass, Replacement

LONGEST_NAME = 1000
"""Letters that the name of a size may have."""


class Folding(FoldConstantsPass):  # type: ignore[misc]
    """The library's, which writes the sum of two sizes as a text that holds both texts.

    A size that a graph doubles 40 times had a name of 2⁴⁰ letters, and folding never ended. Sizes of names
    longer than :data:`LONGEST_NAME` are forgotten.
    """

    def process_node(self, node: ir.Node, is_function: bool) -> Replacement | None:
        """Fold one node."""
        found = super().process_node(node, is_function)
        for value in node.outputs:
            sizes = self._state.get_sym_value(value)
            if isinstance(sizes, ir.Shape) and any(len(str(size)) > LONGEST_NAME for size in sizes):
                self._state.set_sym_value(value, ir.Shape([None] * len(sizes)))
        return found
