"""Whether keys and values of a cache in int8 are faster or slower than in float32, and how much smaller.

The pass ``kvcache`` rounds the cache of a copy, whatever its speed. Steps of one token after pasts of several
lengths take turns on this machine's CPU, with what made-up tokens leave in the cache::

    python benchmarks/int8_cache.py smollm2-onnx --lengths 32,512 --rounds 30

The model is a folder with the files of a model that writes, or one file that does everything. Nothing is
lowered: operators are those of ``simplify``.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from functools import partial
from pathlib import Path

import numpy as np

from graphcompress.files.parts import is_past
from graphcompress.graph.model import Model
from graphcompress.measure.timing import interleaved
from graphcompress.passes.quantize.kvcache import FLOAT, INT8, KvCache, step_of
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context


def main(arguments: Sequence[str] | None = None) -> int:
    """Print a row for each length of the cache."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "model", type=Path, help="folder, or ONNX file that takes steps with past keys and values"
    )
    parser.add_argument("--lengths", default="32,512", help="tokens in the cache, joined by commas")
    parser.add_argument("--batch", type=int, default=1)
    parser.add_argument("--rounds", type=int, default=30)
    asked = parser.parse_args(arguments)
    models = {FLOAT: Model.load(asked.model)}
    Pipeline.parse("simplify").run(models[FLOAT], Context())
    models[INT8] = models[FLOAT].clone()
    KvCache(measure=False).run(models[INT8], Context())
    print(f"| past | {FLOAT} | {INT8} | step | step, int8 | times as fast | error of logits |")
    print("|---|---|---|---|---|---|---|")
    for length in map(int, asked.lengths.split(",")):
        print(f"| {asked.batch}×{length} | {_row(models, length, asked.batch, asked.rounds)} |", flush=True)
    return 0


def _row(models: dict[str, Model], length: int, batch: int, rounds: int) -> str:
    steps = {name: step_of(model, length, batch=batch) for name, model in models.items()}
    sizes = [
        sum(array.nbytes for name, array in feed.items() if is_past(name)) / 1e6 for _, feed in steps.values()
    ]
    said = [
        next(array for name, array in run(feed).items() if "logits" in name) for run, feed in steps.values()
    ]
    error = np.linalg.norm(said[0] - said[1]) / np.linalg.norm(said[0])
    measured = interleaved({name: partial(run, feed) for name, (run, feed) in steps.items()}, rounds=rounds)
    ms = [measured.timings[name].median_ms for name in steps]
    return (
        f"{sizes[0]:.2f} MB | {sizes[1]:.2f} MB | {ms[0]:.2f} ms | {ms[1]:.2f} ms | "
        f"{measured.ratio(INT8, FLOAT)} | {error:.3f}"
    )


if __name__ == "__main__":
    raise SystemExit(main())
