"""Node counts of simplify against onnxslim, onnxsim and onnxscript's optimizer, with the outputs compared.

    python benchmarks/node_counts.py model.onnx …

A tool that raises or changes an output is shown with what went wrong. Small models of many architectures are
counted by `make matrix`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

import numpy as np
import onnx
from rich.console import Console
from rich.table import Table

from graphcompress.data.made_up import synthetic_samples
from graphcompress.graph.model import Model
from graphcompress.passes.simplify.simplify import Simplify
from graphcompress.plugin.context import Context

sys.path.insert(0, str(Path(__file__).parents[1] / "tests"))
from matrix.tools import TOOLS, counts, nodes

SHAPES = ((2, 7), (1, 12), (3, 5))
"""Batch and length of the samples on which outputs are compared."""


def feeds(model: Model) -> list[dict[str, np.ndarray]]:
    """Made-up inputs at :data:`SHAPES`."""
    made = (synthetic_samples(model, count=batch, length=length) for batch, length in SHAPES)
    return [samples.batch(range(len(samples))) for samples in made]


def main() -> None:
    """Print one line per model."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("models", nargs="+", type=Path)
    table = Table("model", "input", *TOOLS, "simplify")
    for path in parser.parse_args().models:
        model, proto = Model.load(path), onnx.load(path)
        others = counts(proto, feeds(model))
        Simplify().run(model, Context())
        own = sum(node.op_type != "Constant" for node in model.graph)
        table.add_row(path.stem, *map(str, (nodes(proto), *others.values(), own)))
    Console().print(table)


if __name__ == "__main__":
    main()
