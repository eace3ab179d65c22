"""Accuracy and size of int8 on STS-B dev: calibrators, ranges of weights, dynamic, ONNX Runtime's own tools.

Usage: python benchmarks/int8_stsb.py MODEL.onnx --data FOLDER [--only static]

MODEL.onnx is a sentence encoder with tokenizer.json beside it. FOLDER (or GRAPHCOMPRESS_DATA) holds
stsb/train.jsonl.gz, whose first sentences calibrate, and stsb/validation.jsonl.gz, whose 1,500 pairs are
scored: Spearman of the cosine of mean-pooled outputs. Nothing here is timed.
"""

from __future__ import annotations

import argparse
import fnmatch
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from graphcompress.data.load import Samples, load_samples
from graphcompress.files.runtime import session_of
from graphcompress.graph.model import Model
from graphcompress.measure.invariance import batch_invariance
from graphcompress.measure.metrics import answers, metric, score
from graphcompress.measure.verify import compare
from graphcompress.passes.quantize.int8 import Int8
from graphcompress.plugin.capabilities import Capabilities
from graphcompress.plugin.context import Context
from graphcompress.plugin.schemes import INT8, UINT8, integer_products

CALIBRATION_SENTENCES = 300
CHECKED_ALONE = 64
SATURATES = Capabilities(integer_products(UINT8, INT8, dynamic=True, weight_bits=7))

OURS: dict[str, Int8] = {
    "default": Int8(),
    "static minmax": Int8(calibrate="minmax"),
    "static percentile 99.99": Int8(calibrate="percentile"),
    "static percentile 99.9": Int8(calibrate="percentile", percentile=99.9),
    "static mse": Int8(calibrate="mse"),
    "static weights pairs": Int8(weights="pairs"),
    "static weights 7bit": Int8(weights="7bit"),
    "static weights 8bit": Int8(weights="8bit"),
    "dynamic weights pairs": Int8(scheme="dynamic", weights="pairs"),
    "dynamic weights 8bit": Int8(scheme="dynamic", weights="8bit"),
    "embeddings in float": Int8(embeddings=False),
}


def quantise(step: Int8) -> Callable[[Path, Path, Samples], None]:
    """A function that writes the model quantised by ``step``."""

    def write(source: Path, destination: Path, samples: Samples) -> None:
        model = Model.load(source)
        step.run(model, Context(samples=samples, capabilities=SATURATES))
        model.save(destination)

    return write


def ort_dynamic(source: Path, destination: Path, samples: Samples) -> None:
    """``onnxruntime.quantization.quantize_dynamic`` with its defaults."""
    from onnxruntime.quantization import quantize_dynamic

    quantize_dynamic(source, destination)


def ort_static(source: Path, destination: Path, samples: Samples) -> None:
    """``onnxruntime.quantization.quantize_static``: per-channel, reduced-range weights, else its defaults."""
    from onnxruntime.quantization import CalibrationDataReader, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]
        def __init__(self) -> None:
            self._feeds: Iterator[Mapping[str, np.ndarray]] = samples.batches(8, by_length=True)

        def get_next(self) -> Mapping[str, np.ndarray] | None:
            return next(self._feeds, None)

    quantize_static(source, destination, Reader(), per_channel=True, reduce_range=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").partition("\n")[0])
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, default=os.environ.get("GRAPHCOMPRESS_DATA"))
    parser.add_argument("--only", default="*", help="glob over the rows; fp32 is always measured")
    arguments = parser.parse_args()
    if arguments.data is None:
        parser.error("give --data FOLDER or set GRAPHCOMPRESS_DATA")
    model = Model.load(arguments.model)
    folder = Path(arguments.data) / "stsb"
    train = load_samples(folder / "train.jsonl.gz", model, pair="separate", limit=CALIBRATION_SENTENCES // 2)
    dev = load_samples(folder / "validation.jsonl.gz", model, pair="separate")
    ways = {name: quantise(step) for name, step in OURS.items()}
    ways |= {"onnxruntime quantize_dynamic": ort_dynamic, "onnxruntime quantize_static": ort_static}
    table = Table("way", "Spearman", "MB", "SQNR dB", "moves in a batch", "moved most")
    with tempfile.TemporaryDirectory() as temporary:
        reference = _measure(table, "fp32", arguments.model, dev, None)
        for name, write in ways.items():
            if not fnmatch.fnmatchcase(name, arguments.only):
                continue
            destination = Path(temporary) / "model.onnx"
            write(arguments.model, destination, train)
            _measure(table, name, destination, dev, reference)
    Console(width=120).print(table)


def _measure(
    table: Table, name: str, path: Path, dev: Samples, reference: list[dict[str, np.ndarray]] | None
) -> list[dict[str, np.ndarray]]:
    """Add a row for the model at ``path``; returns its outputs on the samples that are also run alone."""
    session = session_of(path)
    names = [output.name for output in session.get_outputs()]

    def run(feed: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        return dict(zip(names, session.run(names, dict(feed)), strict=True))

    chosen = metric("similarity")
    given = answers(chosen, run, dev)
    alone = replace(dev, feeds=dev.feeds[:CHECKED_ALONE], columns={}, per_row=1)
    feeds = list(alone.batches(8))
    outputs = [run(feed) for feed in feeds]
    difference = compare(reference or outputs, run, feeds)
    invariance = batch_invariance(run, alone, tolerance=0.02)
    table.add_row(
        name,
        f"{score(chosen, given, given, dev).value:.4f}",
        f"{path.stat().st_size / 1e6:.1f}",
        f"{difference.sqnr_db:.1f}",
        f"{invariance.changed} of {invariance.samples}",
        f"{invariance.max_relative_error:.4f}",
    )
    return outputs


if __name__ == "__main__":
    main()
