"""simplify: the same function with fewer nodes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import onnx_ir.passes.common as common
from onnxscript.optimizer import _constant_folding
from onnxscript import rewriter
import onnx_ir as ir

from graphcompress.base import Context, Contract, Exact, Pass
from graphcompress.model import Model
from graphcompress.rewrite import Rewriter


@dataclass(frozen=True)
class Simplify(Pass):
    """Remove what an exporter left behind; outputs do not change."""

    name: ClassVar[str] = "simplify"
    contract: ClassVar[Contract] = Exact()

    def run(self, model: Model, ctx: Context) -> None:
        """Fold, deduplicate and clean until nothing changes."""
        before = sum(1 for _ in model.graph)
        import onnxscript.optimizer

        onnxscript.optimizer.optimize_ir(model.ir)
        model.infer_shapes()
        Rewriter(model, ctx).note(f"{before} nodes became {sum(1 for _ in model.graph)}")
