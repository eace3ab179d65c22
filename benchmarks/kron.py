"""kron on a sentence encoder, without training: presets and error bounds, fitted to data and not.

Usage: python benchmarks/kron.py MODEL.onnx --data FOLDER [--only "k8*"] [--layers]

MODEL.onnx is a sentence encoder with tokenizer.json beside it. FOLDER (or GRAPHCOMPRESS_DATA) holds
stsb/train.jsonl.gz, whose first sentences the factors are fitted to, and stsb/validation.jsonl.gz, whose
1,500 pairs are scored: Spearman of the cosine of mean-pooled outputs. Every way runs in a process of its own,
whose time and largest memory are printed. ``--layers`` lists the error of every layer's output on validation
sentences, for factors of the same sizes fitted to the weight and to the output.
"""

from __future__ import annotations

import argparse
import fnmatch
import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from graphcompress.analysis.linears import linears
from graphcompress.data.load import Samples, load_samples
from graphcompress.files.runtime import session_of
from graphcompress.graph.model import Model
from graphcompress.measure.calibrate import observe
from graphcompress.measure.metrics import answers, metric, score
from graphcompress.numerics.kronecker import relative_error
from graphcompress.numerics.moments import SecondMoment
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context

CALIBRATION_PAIRS = 150
CHECKED_PAIRS = 100

WAYS = {
    "default": "kron",
    "max_error=0.1": "kron{max_error=0.1}",
    "max_error=0.2": "kron{max_error=0.2}",
    "ratio=0.5": "kron{ratio=0.5}",
    "ratio=0.5, no embeddings": "kron{ratio=0.5 embeddings=false}",
    "k8": "kron{preset=k8}",
    "k19": "kron{preset=k19}",
    "k21": "kron{preset=k21}",
    "k8, no embeddings": "kron{preset=k8 embeddings=false}",
    "k8, 4 terms": "kron{preset=k8 rank=4}",
}


@dataclass(frozen=True)
class Result:
    """What one way gave."""

    parameters: int
    touched: int
    seconds: float
    memory_bytes: int


def compress(source: Path, destination: Path, text: str, calibration: Path | None) -> Result:
    """Run the passes of ``text``; without calibration data the factors are fitted to the weights."""
    model = Model.load(source)
    samples = None
    if calibration is not None:
        samples = load_samples(calibration, model, pair="separate", limit=CALIBRATION_PAIRS)
    ctx = Context(samples=samples)
    start = time.perf_counter()
    touched = sum(len(step.run(model, ctx).touched) for step in Pipeline.parse(text).passes)
    seconds = time.perf_counter() - start
    model.save(destination)
    memory = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return Result(model.parameters, touched, seconds, memory)


def spearman_of(path: Path, dev: Samples) -> float:
    session = session_of(path)
    names = [output.name for output in session.get_outputs()]

    def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, dict(feed)), strict=True))

    chosen = metric("similarity")
    given = answers(chosen, run, dev)
    return score(chosen, given, given, dev).value


def layer_errors(source: Path, path: Path, dev: Samples) -> dict[str, float]:
    """Relative error of every changed linear's output on the inputs that it has in the original model."""
    original, changed = Model.load(source), {linear.name: linear for linear in linears(Model.load(path))}
    found = linears(original)
    moments = {linear.input: SecondMoment(linear.in_features) for linear in found}
    observe(original, moments, dev.first(CHECKED_PAIRS))
    errors = {}
    for linear in found:
        name = linear.name if linear.name in changed else f"{linear.name}.kron_a"
        moment = moments[linear.input]
        gram = moment.total / moment.count
        errors[linear.name] = relative_error(linear.dense(), changed[name].dense(), gram)
    return errors


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("GRAPHCOMPRESS_DATA"))
    parser.add_argument("--only", default="*", help="glob over the ways")
    parser.add_argument("--layers", action="store_true", help="errors layer by layer")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("give --data FOLDER or set GRAPHCOMPRESS_DATA")
    folder = Path(arguments.data) / "stsb"
    original = Model.load(arguments.model)
    dev = load_samples(folder / "validation.jsonl.gz", original, pair="separate")
    table = Table("way", "fitted to", "weights", "parameters", "smaller", "MB", "Spearman", "s", "memory MB")
    table.add_row(
        "fp32",
        "",
        "",
        f"{original.parameters:,}",
        "1.0",
        f"{arguments.model.stat().st_size / 1e6:.1f}",
        f"{spearman_of(arguments.model, dev):.4f}",
    )
    console = Console(width=130)
    with tempfile.TemporaryDirectory() as temporary:
        for name, text in WAYS.items():
            if not fnmatch.fnmatchcase(name, arguments.only):
                continue
            errors: list[dict[str, float]] = []
            for data in (None, folder / "train.jsonl.gz"):
                path = Path(temporary) / f"{len(errors)}.onnx"
                with multiprocessing.get_context("spawn").Pool(1) as pool:
                    result = pool.apply(compress, (arguments.model, path, text, data))
                table.add_row(name, *_row(result, path, original, dev, data is not None))
                errors.append(layer_errors(arguments.model, path, dev) if arguments.layers else {})
            if arguments.layers:
                console.print(_layers(name, *errors))
    console.print(table)


def _row(result: Result, path: Path, original: Model, dev: Samples, fitted: bool) -> list[str]:
    return [
        "outputs" if fitted else "weights",
        str(result.touched),
        f"{result.parameters:,}",
        f"{original.parameters / result.parameters:.1f}",
        f"{path.stat().st_size / 1e6:.1f}",
        f"{spearman_of(path, dev):.4f}",
        f"{result.seconds:.0f}",
        f"{result.memory_bytes / 1e6:.0f}",
    ]


def _layers(name: str, plain: dict[str, float], fitted: dict[str, float]) -> Table:
    table = Table(f"{name}: error of the output", "fitted to weights", "fitted to outputs")
    for layer, error in plain.items():
        table.add_row(layer, f"{error:.3f}", f"{fitted[layer]:.3f}")
    return table


if __name__ == "__main__":
    main()
