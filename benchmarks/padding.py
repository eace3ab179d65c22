"""Removed padding and fp16 storage: time, size and answers on a batch of sentences of their own lengths.

    python benchmarks/padding.py model.onnx --data sentences.jsonl

Prepares every artifact first, then times them in turns: the fastest tenth of the rounds of one run.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import numpy as np

from graphcompress.data.load import load_samples
from graphcompress.data.samples import padding_mask
from graphcompress.files.runtime import session_of
from graphcompress.graph.model import Model
from graphcompress.measure.timing import interleaved
from graphcompress.numerics.metrics import sqnr_db
from graphcompress.pipeline.pipeline import Pipeline
from graphcompress.plugin.context import Context
from graphcompress.targets.cpu.cpu import Cpu

BATCH = 8


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", type=Path)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--passes", default="simplify")
    parser.add_argument("--rounds", type=int, default=60)
    given = parser.parse_args()
    model = Model.load(given.model)
    samples = load_samples(given.data, model)
    feed = samples.batch([number * len(samples) // BATCH for number in range(BATCH)])
    mask = padding_mask(feed)
    context = Context(samples, Cpu().capabilities)
    pipeline = Pipeline.parse(given.passes)
    pipeline.run(model, context, allow=[step.name for step in pipeline.passes])
    targets = {
        "keep": Cpu(measure=False),
        "remove": Cpu(measure=False, padding="remove"),
        "fp16 storage": Cpu(measure=False, float_storage="fp16"),
    }
    with tempfile.TemporaryDirectory() as folder:
        sessions, sizes = {"input": session_of(given.model)}, {"input": given.model.stat().st_size}
        for name, target in targets.items():
            (Path(folder) / name).mkdir()
            target.lower(model, Path(folder) / name, context)
            path = Path(folder) / name / "model.onnx"
            sessions[name], sizes[name] = session_of(path), path.stat().st_size
        runs = {name: (lambda s=session: s.run(None, feed)) for name, session in sessions.items()}
        expected = runs["input"]()[0]
        found = interleaved(runs, rounds=given.rounds)
    real = np.ones(expected.shape[:2], bool) if mask is None else mask
    lengths = real.sum(axis=1)
    print(f"{BATCH} samples of {lengths.min()} to {lengths.max()} tokens, {real.mean():.0%} real")
    for name, timing in found.timings.items():
        answer = runs[name]()[0]
        pair = (expected[real], answer[real]) if expected.ndim == 3 else (expected, answer)
        print(f"{name:13} {timing.low_ms:8.2f} ms  {sizes[name] / 1e6:8.2f} MB  SQNR {sqnr_db(*pair):.1f} dB")


if __name__ == "__main__":
    main()
