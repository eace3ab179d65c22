"""Compresses a model from Python, and asks what came of it: `python examples/python_api.py MODEL FOLDER`.

The model is an ONNX file; without samples of one's own, made-up ones show that the answers stay close.
"""

from __future__ import annotations

import sys
from pathlib import Path

import graphcompress


def compress(model: Path, folder: Path) -> graphcompress.Build:
    """Build ``folder`` from ``model``, with progress on the terminal, and print what happened."""
    with graphcompress.progress() as progress:
        build = graphcompress.optimize(
            model, "simplify,int8", output=folder, progress=progress, max_size="1GB"
        )
    print(build)
    return build


def question(model: Path, folder: Path) -> None:
    """Ask for the parts of the model, the distance of the outputs, and the speed."""
    found = graphcompress.inspect(model, "none")
    print(f"{len(found.weights)} weights, {len(found.layers)} blocks, {found.parameters:,} parameters")
    print(graphcompress.verify(model, folder))
    print(graphcompress.bench({"before": model, "after": folder}, shapes=["1xnatural"], rounds=3))


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit("give an ONNX file and a folder that is not there yet")
    compress(Path(sys.argv[1]), Path(sys.argv[2]))
    question(Path(sys.argv[1]), Path(sys.argv[2]))
